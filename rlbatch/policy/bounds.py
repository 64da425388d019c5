"""Keep the batch size between limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.errors import ConfigurationError
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Bounded(Wrapper):
    """Clips each request to the limits of the run's context, and to its own where it has any.

    A batch size that is outside already is brought back by the next decision, whatever the inner
    policy asks for. Where the two kinds of limits exclude each other, the context's win.

    Attributes:
        policy: The inner policy.
        min_batch_size: Own lower limit.
        max_batch_size: Own upper limit.
    """

    policy: Policy
    min_batch_size: int | None = None
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        low = 1 if self.min_batch_size is None else self.min_batch_size
        if low < 1 or (self.max_batch_size is not None and self.max_batch_size < low):
            raise ConfigurationError(
                "Bounded needs 1 <= min_batch_size <= max_batch_size; got "
                f"{self.min_batch_size} and {self.max_batch_size}."
            )

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, clipped."""
        asked, state = self.policy.decide(observation, signals, state)
        size = np.log2(signals.batch_size)
        change = np.asarray(asked.log2_change)
        if self.min_batch_size is not None:
            change = np.maximum(change, np.log2(self.min_batch_size) - size)
        if self.max_batch_size is not None:
            change = np.minimum(change, np.log2(self.max_batch_size) - size)
        low, high = np.log2(signals.context.min_batch_size), np.log2(signals.context.max_batch_size)
        return tools.adjusted(asked, np.clip(change, low - size, high - size), "bounds"), state
