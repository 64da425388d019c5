"""The gradient noise scale of recorded chunks, with its error.

The noise scale is tr(Sigma) / |G|^2 (McCandlish et al. 2018, "An Empirical Model of Large-Batch
Training", equation 2.8), in samples: the batch size at which noise and gradient are equally large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlbatch.log.decision_record import DecisionRecord

_DECAY = 0.7  # a chunk, as in the observation, so that what is shown is what the policy saw


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale in samples.

    Attributes:
        value: The estimate, or the lower bound of it; NaN before the first measurement.
        error: Its standard error; NaN where it is unknown.
        is_bound: |G|^2 drowns in its own error: the noise scale is at least `value`.
    """

    value: float = math.nan
    error: float = math.nan
    is_bound: bool = False


def noise_scale(grad_sqr: float, grad_se: float, trace: float, trace_se: float) -> NoiseScale:
    """Return tr(Sigma) / |G|^2 and its error to first order, both parts taken as independent.

    Args:
        grad_sqr: Estimate of |G|^2; may be negative.
        grad_se: Its standard error; NaN where unknown.
        trace: Estimate of tr(Sigma).
        trace_se: Its standard error; NaN where unknown.
    """
    if not (math.isfinite(grad_sqr) and math.isfinite(trace)) or trace <= 0:
        return NoiseScale()
    error = abs(grad_sqr) if math.isnan(grad_se) else grad_se
    least = max(grad_sqr, 0.5 * error)
    if least <= 0 or not math.isfinite(least):
        return NoiseScale()
    if grad_sqr < error:
        return NoiseScale(trace / least, math.nan, is_bound=True)
    value = trace / grad_sqr
    return NoiseScale(value, value * math.hypot(grad_se / grad_sqr, trace_se / trace))


def of_chunk(record: DecisionRecord) -> NoiseScale:
    """Return what one chunk's measurements alone say."""
    names = ("grad_sqr", "grad_sqr_se", "noise_trace", "noise_trace_se")
    return noise_scale(*(_signal(record, name) for name in names))


class NoiseAverage:
    """The noise scale known after each of a run's records: both parts averaged over chunks.

    Chunks count 0.7 to the power of their age, as in the observation.
    """

    def __init__(self) -> None:
        """Begin before the first record."""
        self._weight = self._grad = self._grad_var = self._trace = self._trace_var = 0.0

    def add(self, record: DecisionRecord) -> NoiseScale:
        """Return what is known after one more record."""
        grad, trace = _signal(record, "grad_sqr"), _signal(record, "noise_trace")
        if math.isfinite(grad) and math.isfinite(trace):
            grad_se, trace_se = _signal(record, "grad_sqr_se"), _signal(record, "noise_trace_se")
            spread = grad_se if math.isfinite(grad_se) else abs(grad)
            self._weight = _DECAY * self._weight + 1.0
            self._grad = _DECAY * self._grad + grad
            self._trace = _DECAY * self._trace + trace
            self._grad_var = _DECAY**2 * self._grad_var + _square(spread)
            self._trace_var = _DECAY**2 * self._trace_var + _square(trace_se)
        if self._weight == 0.0:
            return NoiseScale()
        errors = math.sqrt(self._grad_var), math.sqrt(self._trace_var)
        parts = self._grad, errors[0], self._trace, errors[1]
        return noise_scale(*(part / self._weight for part in parts))


def _signal(record: DecisionRecord, name: str) -> float:
    value = record.signals.get(name)
    return value if isinstance(value, float) else math.nan


def _square(value: float) -> float:
    return min(value * value, 1e300)  # NaN stays: an unknown error makes the average's unknown
