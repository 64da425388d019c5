"""The learning rate's coupling to the batch size, with the averages that AdaScale needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from torch.optim import Optimizer

from rlbatch.data.learning_rate import LearningRateCoupling
from rlbatch.signals.metric import is_adaptive
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.noise_scale import adascale_gain
from rlbatch.signals.record import Coupling

_DECAY = 0.7  # a chunk, as in the observation


class CoupledRate:
    """Chooses the factor at each batch size; AdaScale's from smoothed gradient statistics.

    Attributes:
        chosen: Batch size of the factor in force; 0 when it has to be computed anew.
    """

    def __init__(self, optimizer: Optimizer, coupling: Coupling, base_batch_size: int) -> None:
        """Start at the base batch size, without any measurement."""
        self._rate = LearningRateCoupling(
            optimizer, coupling.value, base_batch_size, adaptive=is_adaptive(optimizer)
        )
        self._block = self._rate.applied()
        self._base = base_batch_size
        self.chosen = 0
        self._grad_sqr = self._noise_trace = self._weight = 0.0

    @property
    def factor(self) -> float:
        """What the learning rate is multiplied by."""
        return self._rate.factor

    def set_batch_size(self, batch_size: int) -> float:
        """Choose the factor for the coming steps and return it."""
        if batch_size == self.chosen:
            return self._rate.factor
        self.chosen, gain = batch_size, None
        if self._weight:
            gain = float(adascale_gain(self._grad_sqr, self._noise_trace, self._base, batch_size))
        return self._rate.set_batch_size(batch_size, gain)

    def applied(self) -> AbstractContextManager[float]:
        """Scale the learning rate within the `with` block, around optimizer.step() alone."""
        return self._block

    def attach(self) -> Callable[[], None]:
        """Scale in every optimizer.step() of a loop that others wrote; returns what ends this."""
        return self._rate.attach()

    def observe(self, measured: ChunkMeasurement) -> None:
        """Take a chunk's gradient statistics into the averages, numerator and denominator apart."""
        noise = measured.noise
        if math.isfinite(noise.grad_sqr) and math.isfinite(noise.noise_trace):
            self._grad_sqr = _DECAY * self._grad_sqr + noise.grad_sqr
            self._noise_trace = _DECAY * self._noise_trace + noise.noise_trace
            self._weight = _DECAY * self._weight + 1.0
            self.chosen = 0

    def state_dict(self) -> dict[str, float]:
        """Return the averages."""
        return {
            "grad_sqr": self._grad_sqr,
            "noise_trace": self._noise_trace,
            "weight": self._weight,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from these averages."""
        self._grad_sqr, self._noise_trace = state["grad_sqr"], state["noise_trace"]
        self._weight, self.chosen = state["weight"], 0
