"""Never exceed what fits into memory."""

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
class MemoryCap(Wrapper):
    """Clips each request to the largest batch size that memory holds.

    It is a wrapper of its own, beside `Bounded`, so that the log tells a limit that the user chose
    from one that the device set. With gradient accumulation memory depends on the micro-batch, and
    this is not needed.

    Attributes:
        policy: The inner policy.
        largest_batch_size: Largest batch size that fits.
    """

    policy: Policy
    largest_batch_size: int

    def __post_init__(self) -> None:
        if self.largest_batch_size < 1:
            raise ConfigurationError(
                f"MemoryCap.largest_batch_size must be at least 1; got {self.largest_batch_size}."
            )

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, clipped from above."""
        asked, state = self.policy.decide(observation, signals, state)
        room = np.log2(self.largest_batch_size) - np.log2(signals.batch_size)
        return tools.adjusted(asked, np.minimum(asked.log2_change, room), "memory cap"), state
