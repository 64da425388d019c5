"""One thread for NumPy's matrix products: those of a policy are small.

With a thread a core they wait for each other; where the cores have other work as well, telling why
the decisions of a few runs were made takes ten times the processor's time.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any


@functools.cache
def _controller() -> Any:
    """Return what knows the libraries of matrix products; None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return None
    return ThreadpoolController()  # finding the libraries takes longer than a decision: once


def one_thread() -> AbstractContextManager[Any]:
    """Multiply with one thread in a block, where threadpoolctl (of the extra cli) is installed."""
    controller = _controller()
    return nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")
