"""Limit how far one decision may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.errors import ConfigurationError
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.elementwise import clip, number
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class RateLimited(Wrapper):
    """Clips the change of log2(batch size) of each decision.

    Attributes:
        policy: The inner policy.
        max_log2_change: Largest change either way; 1 allows halving and doubling.
    """

    policy: Policy
    max_log2_change: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.max_log2_change < np.inf:
            raise ConfigurationError(
                f"RateLimited.max_log2_change must be above 0; got {self.max_log2_change}."
            )

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, clipped."""
        asked, state = self.policy.decide(observation, signals, state)
        change = clip(number(asked.log2_change), -self.max_log2_change, self.max_log2_change)
        return tools.adjusted(asked, change, "rate limit"), state
