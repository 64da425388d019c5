"""A policy that plays a list of changes, for tests of what surrounds a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class ScriptedPolicy:
    """Asks for one change after the other, the same for every run, and then stays.

    Attributes:
        changes: The changes of log2(batch size), in order.
    """

    changes: tuple[float, ...]

    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the number of decisions so far."""
        return np.zeros(shape, dtype=np.int64)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the next change."""
        script = np.asarray([*self.changes, 0.0])
        change = script[np.minimum(state, len(self.changes))]
        return tools.decision(change, "script"), np.asarray(state) + 1
