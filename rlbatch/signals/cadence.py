"""When a run is looked at: the optimizer steps of a chunk, and the steps whose noise is measured.

Pure functions of the steps done, so that a live run, the simulator and a resumed run agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from rlbatch.arguments import real_number, shown, whole_number
from rlbatch.errors import ConfigurationError
from rlbatch.signals import elementwise
from rlbatch.signals.record import Array, Coupling

NOISE_RATE = 0.6
"""Of the first n steps, about this times the square root of n are measured."""

FIRST_MEASURED = 2
"""Steps done before the first measured one: Adam has no usable second moment earlier."""

_ALL = 1e9  # a rate that no run outgrows, in place of infinity
_FAR = 1e7  # square root of steps that no run makes


def chunk_steps(
    steps_done: float | Array,
    minimum: float | Array,
    growth: float | Array,
    maximum: float | Array = math.inf,
    first: float | Array = 1,
) -> Array:
    """Return the optimizer steps of the chunk that starts after `steps_done` steps.

    Chunks grow with the run, so that short and long ones both get a few dozen to a hundred
    decisions, and nobody has to know the length of the run in advance. The first ones are shorter
    than `minimum`, by default one step to begin with: where the first size is far too large, four
    steps of it may cost a fifth of a whole good run, and what has to be known to leave it is known
    at once.

    Args:
        steps_done: Optimizer steps so far.
        minimum: Fewest steps of a chunk, once twice as many are done.
        growth: A chunk has at least this share of the steps so far.
        maximum: Most steps of a chunk.
        first: Steps of the first chunk, at most `minimum`.
    """
    steps_done = elementwise.number(steps_done)
    begun = elementwise.minimum(minimum, first + np.floor(0.5 * steps_done))
    wanted = elementwise.maximum(begun, np.floor(growth * steps_done))
    return elementwise.minimum(wanted, maximum)


@dataclass(frozen=True)
class Cadence:
    """How many optimizer steps lie between two decisions; see `chunk_steps`.

    Attributes:
        minimum: Fewest steps of a chunk, after the first few chunks.
        growth: A chunk has at least this share of the steps so far.
        maximum: Most steps of a chunk.
        first: Steps of the first chunk.
    """

    minimum: int = 4
    growth: float = 0.1
    maximum: int = 200
    first: int = 1

    def __post_init__(self) -> None:
        """Refuse chunks without a step; keep numbers as Python's own."""
        found = [whole_number(n) for n in (self.first, self.minimum, self.maximum)]
        growth = real_number(self.growth)
        steps = [number for number in found if number is not None]
        ordered = len(steps) == len(found) and 1 <= steps[0] <= steps[1] <= steps[2]
        if not ordered or growth is None or not 0 <= growth < math.inf:
            raise ConfigurationError(
                "A cadence needs 1 <= first <= minimum <= maximum (first_chunk_steps, "
                "min_chunk_steps, max_chunk_steps), all whole, and a finite growth (chunk_growth) "
                f"of at least 0; got first={shown(self.first)}, minimum={shown(self.minimum)}, "
                f"maximum={shown(self.maximum)}, growth={shown(self.growth)}."
            )
        for name, value in zip(("first", "minimum", "maximum"), steps, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "growth", growth)

    def chunk_steps(self, steps_done: int) -> int:
        """Return the steps of the chunk that starts after `steps_done` steps."""
        return int(chunk_steps(steps_done, self.minimum, self.growth, self.maximum, self.first))


def measuring_rate(wanted: float, coupling: Coupling) -> float:
    """Return the rate for a policy that wants this one: AdaScale needs the noise anyway."""
    return wanted or NOISE_RATE * (coupling is Coupling.ADASCALE)


def measured_among(steps: float | Array, rate: float) -> Array:
    """Return how many of a run's first steps are measured.

    A measured step costs more than others, up to two additional passes where it is all launches.
    So measurements thin out with the square root of the steps: something is known early, and in a
    long run the cost vanishes.

    Args:
        steps: Optimizer steps.
        rate: Times their square root; infinite for all.
    """
    steps = np.asarray(steps, dtype=np.float64)
    rate = min(rate, _ALL)
    count = np.floor(np.minimum(rate * np.sqrt(steps), steps))
    return cast("Array", np.maximum(count - _count(FIRST_MEASURED, rate), 0.0))


def is_measured(step: int, rate: float) -> bool:
    """Return whether the step after `step` steps is measured."""
    if step < FIRST_MEASURED:
        return False
    rate = min(rate, _ALL)
    # Asked in every step: `_count` before and after it, written out.
    after = math.floor(min(rate * math.sqrt(step + 1), step + 1))
    return after > math.floor(min(rate * math.sqrt(step), step))


def next_measured(step: int, rate: float) -> float:
    """Return the first step from `step` on that is measured; infinite where there is none."""
    step = max(step, FIRST_MEASURED)
    if rate <= 0.0:
        return math.inf
    # Behind it one more is measured than in front of `step`; two steps are left to rounding.
    root = (_count(step, rate) + 1) / min(rate, _ALL)
    if root > _FAR:
        return math.inf
    step = max(step, math.floor(root * root) - 2)
    while not is_measured(step, rate):
        step += 1
    return step


def _count(steps: int, rate: float) -> int:
    return math.floor(min(min(rate, _ALL) * math.sqrt(steps), steps))
