"""rlbatch: a reinforcement-learning controller that adapts the batch size while a model trains.

The names below are loaded on first use, so that `import rlbatch` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; keep in step with _PUBLIC
    from rlbatch.control.config import ControllerConfig as ControllerConfig
    from rlbatch.control.guard import GuardConfig as GuardConfig
    from rlbatch.control.limits import Limits as Limits
    from rlbatch.controller import BatchController as BatchController
    from rlbatch.data.sample_schedule import SampleSchedule as SampleSchedule
    from rlbatch.envs.task import Task as Task
    from rlbatch.errors import ConfigurationError as ConfigurationError
    from rlbatch.errors import DeliveryError as DeliveryError
    from rlbatch.errors import EpisodeLogError as EpisodeLogError
    from rlbatch.errors import MissingExtraError as MissingExtraError
    from rlbatch.errors import PolicyFileError as PolicyFileError
    from rlbatch.errors import RlbatchError as RlbatchError
    from rlbatch.errors import UnknownNameError as UnknownNameError
    from rlbatch.log.episode_log import read_episode as read_episode
    from rlbatch.policy.base import Decision as Decision
    from rlbatch.policy.base import Policy as Policy
    from rlbatch.policy.file import load_policy as load_policy
    from rlbatch.policy.registry import resolve_policy as resolve_policy
    from rlbatch.signals.cadence import Cadence as Cadence
    from rlbatch.signals.record import Coupling as Coupling
    from rlbatch.signals.record import Signals as Signals

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "BatchController": "rlbatch.controller",
    "Cadence": "rlbatch.signals.cadence",
    "ConfigurationError": "rlbatch.errors",
    "ControllerConfig": "rlbatch.control.config",
    "Coupling": "rlbatch.signals.record",
    "Decision": "rlbatch.policy.base",
    "DeliveryError": "rlbatch.errors",
    "EpisodeLogError": "rlbatch.errors",
    "GuardConfig": "rlbatch.control.guard",
    "Limits": "rlbatch.control.limits",
    "MissingExtraError": "rlbatch.errors",
    "Policy": "rlbatch.policy.base",
    "PolicyFileError": "rlbatch.errors",
    "RlbatchError": "rlbatch.errors",
    "SampleSchedule": "rlbatch.data.sample_schedule",
    "Signals": "rlbatch.signals.record",
    "Task": "rlbatch.envs.task",
    "UnknownNameError": "rlbatch.errors",
    "load_policy": "rlbatch.policy.file",
    "read_episode": "rlbatch.log.episode_log",
    "resolve_policy": "rlbatch.policy.registry",
}

__all__ = [
    "BatchController",
    "Cadence",
    "ConfigurationError",
    "ControllerConfig",
    "Coupling",
    "Decision",
    "DeliveryError",
    "EpisodeLogError",
    "GuardConfig",
    "Limits",
    "MissingExtraError",
    "Policy",
    "PolicyFileError",
    "RlbatchError",
    "SampleSchedule",
    "Signals",
    "Task",
    "UnknownNameError",
    "load_policy",
    "read_episode",
    "resolve_policy",
]


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
