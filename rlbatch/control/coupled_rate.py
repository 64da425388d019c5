"""The learning rate's coupling to the batch size, with the averages that AdaScale needs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlbatch.control.training_parts import LearningRate
from rlbatch.data.learning_rate import coupling_factor
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.noise_scale import adascale_gain
from rlbatch.signals.record import Coupling

_DECAY = 0.7  # a chunk, as in the observation


class CoupledRate:
    """Chooses the factor at each batch size; AdaScale's from smoothed gradient statistics.

    Attributes:
        chosen: Batch size of the factor in force; 0 when it has to be computed anew.
    """

    def __init__(self, rate: LearningRate, coupling: Coupling, base_batch_size: int) -> None:
        """Start at the base batch size, without any measurement."""
        self._rate, self._rule, self._base = rate, coupling, base_batch_size
        self._grad_sqr = self._noise_trace = self._weight = 0.0
        self.chosen, rate.factor = 0, 1.0

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
        self._rate.factor = coupling_factor(
            self._rule, batch_size, self._base, gain, adaptive=self._rate.adaptive
        )
        return self._rate.factor

    def observe(self, measured: ChunkMeasurement) -> None:
        """Take a chunk's gradient statistics into the averages, numerator and denominator apart."""
        if math.isfinite(measured.grad_sqr) and math.isfinite(measured.noise_trace):
            self._grad_sqr = _DECAY * self._grad_sqr + measured.grad_sqr
            self._noise_trace = _DECAY * self._noise_trace + measured.noise_trace
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
