"""The factor by which a live run's learning rate follows its batch size."""

from __future__ import annotations

import math

from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.noise_scale import adascale_gain
from rlbatch.signals.record import Coupling

_DECAY = 0.7  # a chunk, as in the observation


class CoupledRate:
    """Keeps the averages that AdaScale needs; the other rules need none."""

    def __init__(self, coupling: Coupling, base_batch_size: int) -> None:
        """Start without any measurement: AdaScale's factor is 1 until there is one."""
        self._coupling = coupling
        self._base = base_batch_size
        self._grad_sqr = self._noise_trace = 0.0
        self._weight = 0.0

    def factor(self, batch_size: int) -> float:
        """Return the factor at a batch size, held for a chunk."""
        if self._coupling is not Coupling.ADASCALE:
            return (batch_size / self._base) ** self._coupling.exponent
        if not self._weight:
            return 1.0
        return float(adascale_gain(self._grad_sqr, self._noise_trace, self._base, batch_size))

    def observe(self, measured: ChunkMeasurement) -> None:
        """Take a chunk's gradient statistics into the averages, numerator and denominator apart."""
        noise = measured.noise
        if math.isfinite(noise.grad_sqr) and math.isfinite(noise.noise_trace):
            self._grad_sqr = _DECAY * self._grad_sqr + noise.grad_sqr
            self._noise_trace = _DECAY * self._noise_trace + noise.noise_trace
            self._weight = _DECAY * self._weight + 1.0
