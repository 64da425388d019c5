"""Keep the batch size between limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.elementwise import clip, number
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Bounded(Wrapper):
    """Clips each request to the limits of the run's context.

    A batch size that is outside already is brought back by the next decision, whatever the inner
    policy asks for.

    Attributes:
        policy: The inner policy.
    """

    policy: Policy

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, clipped."""
        asked, state = self.policy.decide(observation, signals, state)
        size = np.log2(signals.batch_size)
        change = number(asked.log2_change)
        low, high = np.log2(signals.context.min_batch_size), np.log2(signals.context.max_batch_size)
        return tools.adjusted(asked, clip(change, low - size, high - size), "bounds"), state
