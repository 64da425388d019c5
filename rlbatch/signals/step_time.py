"""How long a step takes at a batch size: seconds = a + b x batch size, learned from the run.

State goes in and comes out, as in the rest of the signals. A run sees few sizes; how far the fit
rests on measurement is part of the answer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlbatch.signals.record import COST_CURVE_SIZES, Array

FLOOR_SECONDS = 1e-9
"""A clock never shows less: a timer's tick may be longer than a tiny step."""

_RECENT = 9  # observations kept a size: a median of these shrugs off a stray slow chunk
_SPREAD_KNOWN = 2.0  # octaves of observed sizes from which on the line counts as known

StepTimeState = dict[int, tuple[float, ...]]
"""Batch size -> its most recent step times in seconds, oldest first. Plain data."""


@dataclass(frozen=True)
class StepTimeFit:
    """`seconds(B) = fixed_seconds + sample_seconds x B`.

    Attributes:
        fixed_seconds: Seconds of a step without samples (launches, the optimizer's update); at
            least 0.
        sample_seconds: Seconds a sample; at least 0.
        known: 0 when one size was seen and the knee is a guess, rising to 1 when the sizes span two
            octaves.
    """

    fixed_seconds: float
    sample_seconds: float
    known: float

    def step_seconds(self, batch_size: ArrayLike) -> Array:
        """Return the seconds of one step at a batch size (any shape)."""
        return self.fixed_seconds + self.sample_seconds * np.asarray(batch_size, dtype=np.float64)

    def step_cost_curve(self) -> Array:
        """Return log2 of the seconds of a step at `COST_CURVE_SIZES`, shape (17,)."""
        return np.log2(np.maximum(self.step_seconds(COST_CURVE_SIZES), 1e-12))


def known_curve(step_cost: Callable[[Array], Array]) -> tuple[Array, float]:
    """Return `Signals.step_cost_curve` and `Signals.step_cost_known` where no fit is needed.

    Args:
        step_cost: Cost of one step at each of these batch sizes.
    """
    return np.log2(step_cost(COST_CURVE_SIZES)), 1.0


def samples_of(batch_size: float | Array) -> Array:
    """Return what a step costs where samples count."""
    return np.asarray(batch_size, dtype=np.float64)


def observe(state: StepTimeState, batch_size: int, step_seconds: float) -> StepTimeState:
    """Return the state with one more observation; one that is no time changes nothing."""
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        return state
    seen = (*state.get(batch_size, ()), step_seconds)[-_RECENT:]
    return {**state, batch_size: seen}


def fit(state: StepTimeState) -> StepTimeFit:
    """Return the line through the median step time of each size.

    Relative errors are squared, so that a large size has no more say than a small one, and both
    coefficients are kept non-negative. With one size, a step is taken to spend as long on its fixed
    part as on its samples: the knee of the throughput is at that size. With sizes close together
    the line is drawn towards that guess.

    Args:
        state: What `observe` returned; empty gives a line of one second a step, flat, with `known`
            0.
    """
    if not state:
        return StepTimeFit(1.0, 0.0, 0.0)
    sizes = np.array(sorted(state), dtype=np.float64)
    seconds = np.array([statistics.median(state[int(size)]) for size in sizes])
    spread = float(np.log2(sizes[-1] / sizes[0]))
    known = min(spread / _SPREAD_KNOWN, 1.0)
    middle = len(sizes) // 2
    guess_b = seconds[middle] / (2.0 * sizes[middle])
    guess_a = guess_b * sizes[middle]
    a, b = _non_negative_line(sizes, seconds) if len(sizes) > 1 else (guess_a, guess_b)
    return StepTimeFit(
        float(known * a + (1.0 - known) * guess_a),
        float(known * b + (1.0 - known) * guess_b),
        known,
    )


def _non_negative_line(sizes: Array, seconds: Array) -> tuple[float, float]:
    """Return a, b >= 0 of least relative squares; at the border the other is fitted alone."""
    # Divided by the observed seconds, every observation is 1 and the columns are 1/t and B/t.
    fixed, slope = 1.0 / seconds, sizes / seconds
    ff, fs, ss = fixed @ fixed, fixed @ slope, slope @ slope
    f1, s1 = fixed.sum(), slope.sum()
    det = ff * ss - fs**2
    if det <= 1e-12 * ff * ss:
        return 0.0, float(s1 / ss)
    a, b = (f1 * ss - s1 * fs) / det, (s1 * ff - f1 * fs) / det
    if a < 0:
        return 0.0, float(s1 / ss)
    if b < 0:
        return float(f1 / ff), 0.0
    return float(a), float(b)
