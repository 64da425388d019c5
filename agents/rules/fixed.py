"""One batch size for the whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Fixed(tools.Stateless):
    """Stays at one batch size.

    Attributes:
        batch_size: The batch size; None stays at what the run started with. A policy is asked for
            the first time after the first chunk, so a run that shall have this size from its first
            step must also be started with it.
    """

    batch_size: int | None = None

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        size = self.batch_size
        tools.check(size is None or size >= 1, "Fixed.batch_size must be at least 1", size)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to `batch_size`."""
        if self.batch_size is None:
            return tools.decision(np.zeros(np.shape(signals.batch_size)), "fixed"), state
        change = tools.change_to(self.batch_size, signals.batch_size)
        return tools.decision(change, "fixed"), state
