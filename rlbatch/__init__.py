"""rlbatch: a reinforcement-learning controller that adapts the batch size while a model trains.

The names below are loaded on first use, so that `import rlbatch` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; keep in step with _PUBLIC
    from rlbatch.controller import BatchController as BatchController
    from rlbatch.data.learning_rate import LearningRateCoupling as LearningRateCoupling
    from rlbatch.data.sampler import ElasticBatchSampler as ElasticBatchSampler
    from rlbatch.policy.base import Decision as Decision
    from rlbatch.policy.base import Policy as Policy
    from rlbatch.policy.file import load_policy as load_policy
    from rlbatch.policy.registry import resolve_policy as resolve_policy
    from rlbatch.signals.record import Signals as Signals

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "BatchController": "rlbatch.controller",
    "Decision": "rlbatch.policy.base",
    "ElasticBatchSampler": "rlbatch.data.sampler",
    "LearningRateCoupling": "rlbatch.data.learning_rate",
    "Policy": "rlbatch.policy.base",
    "Signals": "rlbatch.signals.record",
    "load_policy": "rlbatch.policy.file",
    "resolve_policy": "rlbatch.policy.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'rlbatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_PUBLIC})
