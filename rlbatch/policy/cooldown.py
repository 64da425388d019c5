"""Wait after a change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.errors import ConfigurationError
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.elementwise import where
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Cooldown(Wrapper):
    """Stays for a number of decisions after each change that it let pass.

    The inner policy goes on deciding meanwhile, so that its averages stay current. Put this
    outside of wrappers that may take a change back (`Cooldown(Bounded(...))`): otherwise it waits
    after changes that never happened.

    Attributes:
        policy: The inner policy.
        chunks: Decisions to stay after a change.
    """

    policy: Policy
    chunks: int = 2

    def __post_init__(self) -> None:
        if self.chunks < 0:
            raise ConfigurationError(f"Cooldown.chunks must not be negative; got {self.chunks}.")

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (inner state, decisions still to wait)."""
        return self.policy.initial_state(shape), np.zeros(shape, dtype=np.int64)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, or "stay" while waiting."""
        inner, waiting = state
        asked, inner = self.policy.decide(observation, signals, inner)
        waiting = np.asarray(waiting)
        change = where(waiting[()] > 0, 0.0, asked.log2_change)
        changed = np.abs(change) > tools.SAME_SIZE
        waiting = np.where(changed, self.chunks, np.maximum(waiting - 1, 0))
        return tools.adjusted(asked, change, "cooldown"), (inner, waiting)
