"""The cost of a step as a function of the batch size, read between the sizes that are known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rlbatch.signals.elementwise import number
from rlbatch.signals.record import COST_CURVE_SIZES, Array, RunContext, Signals

_LOG2_SIZES: Array = np.log2(COST_CURVE_SIZES)
_LAST = len(COST_CURVE_SIZES) - 1


def step_cost_at(curve: Array, log2_size: Array) -> Array:
    """Return log2 of the cost of one step at a batch size, by linear interpolation in log-log.

    Args:
        curve: `Signals.step_cost_curve`, shape (..., 17).
        log2_size: log2 of the batch size, shape (...); clipped to the curve's range.
    """
    return interpolated(curve, number(log2_size)[..., None])[..., 0]


def interpolated(curve: Array, log2_sizes: Array) -> Array:
    """Return `step_cost_at` several sizes of each run, which lie along the last axis."""
    if curve.ndim == 1 and log2_sizes.ndim == 1:
        return _interpolated_one(curve, log2_sizes.tolist())
    position = np.minimum(np.maximum(log2_sizes, 0.0), _LAST)
    lower = np.minimum(position.astype(np.int64), _LAST - 1)
    if curve.ndim == 1:
        left, right = curve[lower], curve[lower + 1]
    else:
        # Quicker than np.take_along_axis.
        lower_place = lower + np.arange(0, curve.size, _LAST + 1).reshape(*curve.shape[:-1], 1)
        flat = curve.ravel()
        left, right = flat.take(lower_place), flat.take(lower_place + 1)
    return left + (right - left) * (position - lower)


def _interpolated_one(curve: Array, log2_sizes: list[float]) -> Array:
    """Return `interpolated` of a single run: Python is quicker with few numbers than NumPy."""
    known: list[float] = curve.tolist()
    costs: list[float] = []
    for size in log2_sizes:
        position = min(max(size, 0.0), float(_LAST))
        lower = min(int(position), _LAST - 1)
        left = known[lower]
        costs.append(left + (known[lower + 1] - left) * (position - lower))
    return np.array(costs)


@lru_cache(maxsize=16)
def _allowed(smallest: float, largest: float) -> NDArray[np.bool_]:
    """Return which of `COST_CURVE_SIZES` lie within a run's limits, to half a doubling."""
    sizes = _LOG2_SIZES
    return (sizes >= np.log2(smallest) - 0.5) & (sizes <= np.log2(largest) + 0.5)


def goodput_size(signals: Signals, context: RunContext, noise_scale: Array) -> Array:
    """Return log2 of the size of most progress per cost (Pollux, Qiao et al. 2021, section 3).

    Args:
        signals: Of a chunk, for the cost of a step.
        context: Of the run, for the limits.
        noise_scale: log2 of the gradient noise scale in samples.
    """
    sizes = _LOG2_SIZES
    # progress per cost = B / (phi + B) / cost(B); the constant phi + B0 does not move the argmax.
    score = (
        -np.log2(1.0 + 2.0 ** (number(noise_scale)[..., None] - sizes)) - signals.step_cost_curve
    )
    smallest, largest = context.min_batch_size, context.max_batch_size
    if isinstance(smallest, float) and isinstance(largest, float):
        allowed = _allowed(smallest, largest)
    else:
        low, high = np.log2(smallest)[..., None] - 0.5, np.log2(largest)[..., None] + 0.5
        allowed = (sizes >= low) & (sizes <= high)
    score = np.where(allowed, score, -np.inf)
    return sizes[score.argmax(axis=-1)]
