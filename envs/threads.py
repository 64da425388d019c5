"""One thread a process: small networks are slower with more, and processes share the cores.

PyTorch's threads and those of NumPy's matrix products are two pools. Two processes whose products
use two threads each on two cores wait for each other, and take twenty times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlbatch.extras import needs_extra

with needs_extra("train", "threadpoolctl"):
    from threadpoolctl import threadpool_limits


def use_one_thread() -> None:
    """Compute with one thread in this process from now on."""
    torch.set_num_threads(1)
    threadpool_limits(limits=1, user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in this process, and afterwards with as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
