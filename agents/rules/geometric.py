"""Geometric growth on a fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Geometric:
    """Multiplies the batch size again and again, after a number of epochs or of steps.

    With B0 the batch size of the first chunk (`GeoDamp` of the package adadamp, whose constants
    these are; AdaBatch, Devarakonda et al. 2017, is the same by hand):

        B <- B0 * factor ** floor(epochs / every_epochs)

    The source changes at the first step of the epoch, this at the next decision.

    Attributes:
        factor: Factor on the batch size.
        every_epochs: Epochs between two changes.
        every_steps: Optimizer steps between two changes; when given, it takes the place of
            `every_epochs`.
    """

    factor: float = 2.0
    every_epochs: float = 5.0
    every_steps: int | None = None

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        factor, epochs, steps = self.factor, self.every_epochs, self.every_steps
        tools.check(0 < factor < np.inf, "Geometric.factor must be above 0", factor)
        tools.check(epochs > 0, "Geometric.every_epochs must be above 0", epochs)
        tools.check(steps is None or steps >= 1, "Geometric.every_steps must be at least 1", steps)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (batch size of the first chunk), not known yet."""
        return (np.full(shape, np.nan),)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the scheduled size."""
        (start,) = state
        start = np.where(np.isnan(start), signals.batch_size, start)
        if self.every_steps is None:
            epochs = np.asarray(signals.total_samples) / signals.context.dataset_size
            changes = np.floor(epochs / self.every_epochs)
        else:
            changes = np.asarray(signals.total_steps) // self.every_steps
        wanted = np.log2(start) + changes * np.log2(self.factor)
        change = wanted - np.log2(signals.batch_size)
        made = tools.decision(change, "geometric", "{:.0f} changes due", changes)
        return made, (start,)
