"""Small pure pieces that several policies share: sizes, words, running means, random numbers.

All work on arrays with free leading axes (one entry a run) and on plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Decision
from rlbatch.signals.elementwise import isfinite, number, where
from rlbatch.signals.record import Array, Numeric, Signals

SAME_SIZE = 1e-6
"""Changes of log2(batch size) below this are rounding, not a change."""

Mean = tuple[Array, Array]
"""A debiased running mean: (decayed sum, decayed weight)."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stateless:
    """A rule that remembers nothing from decision to decision."""

    def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[()]:
        """Return the empty state."""
        return ()


def checked_grid(owner: str, action_grid: Sequence[float]) -> tuple[float, ...]:
    """Return an action grid as plain numbers.

    Args:
        owner: Whose it is, for the message.
        action_grid: Changes of log2(batch size).

    Raises:
        ConfigurationError: They do not ascend, are not finite, or 0 is not among them.
    """
    grid = tuple(float(action) for action in action_grid)
    if 0.0 not in grid or list(grid) != sorted(set(grid)) or not np.all(np.isfinite(grid)):
        raise ConfigurationError(
            f"{owner}.action_grid must ascend and hold 0 (stay); got {grid!r}."
        )
    return grid


def checked_observation(owner: str, observation: ArrayLike) -> NDArray[np.float32]:
    """Return an observation in single precision, shape (..., OBSERVATION_SIZE).

    Args:
        owner: Who is to decide, for the message.
        observation: Of one run or many.

    Raises:
        ConfigurationError: It has another number of features.
    """
    given = np.asarray(observation, dtype=np.float32)
    if given.ndim == 0 or given.shape[-1] != OBSERVATION_SIZE:
        raise ConfigurationError(
            f"{owner} expected {OBSERVATION_SIZE} features in the last axis of the "
            f"observation (rlbatch.observation.encode makes them); got shape {given.shape}."
        )
    return given


def numeric(value: ArrayLike) -> Numeric:
    """Return a plain float for a single run, an array otherwise."""
    found = number(value)
    return float(found) if found.ndim == 0 else found


def flag(value: ArrayLike) -> bool | NDArray[np.bool_]:
    """Return a plain truth value for a single run, an array otherwise."""
    array = np.asarray(value, dtype=np.bool_)
    return bool(array) if array.ndim == 0 else array


def change_to(size: ArrayLike, batch_size: ArrayLike) -> Array:
    """Return the change of log2(batch size) from `batch_size` to `size`; 0 where not finite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        change = np.log2(number(size) / number(batch_size))
    return where(isfinite(change), change, 0.0)


def describe(log2_change: Numeric) -> str:
    """Return a change in words: `stay`, `x2`, `/4`."""
    change = float(log2_change)
    if abs(change) < SAME_SIZE:
        return "stay"
    size = f"{2.0 ** abs(change):.3g}" if abs(change) < 20 else f"2^{abs(change):.0f}"
    return f"{'x' if change > 0 else '/'}{size}"


def decision(log2_change: ArrayLike, name: str, why: str = "", *values: ArrayLike) -> Decision:
    """Return a rule's decision, with a reason when it is about a single run.

    Args:
        log2_change: Requested change of log2(batch size), shape (...).
        name: The rule's name, first word of the reason.
        why: What the rule saw, with a `{}` for each of the values.
        values: Numbers to fill in, in words where they are not finite; ignored for arrays of runs.
    """
    change = numeric(log2_change)
    if not isinstance(change, float):
        return Decision(change)
    saw = why.format(*(_Told(np.asarray(value)) for value in values))
    return Decision(change, reasons=(f"{name}: {describe(change)}{f' ({saw})' if saw else ''}",))


class _Told(float):
    """A number in a reason; people read `unknown` where there is none, not `nan`."""

    def __format__(self, form: str) -> str:
        if math.isnan(self):
            return "unknown"
        if math.isinf(self):
            return "beyond measure"
        return format(float(self), form)


def adjusted(asked: Decision, log2_change: ArrayLike, wrapper: str) -> Decision:
    """Return a decision with another change; for a single run a reason names the wrapper."""
    change = numeric(log2_change)
    if not isinstance(change, float):
        return replace(asked, log2_change=change)
    before = float(asked.log2_change)
    if change == before:
        return asked
    if abs(change - before) < SAME_SIZE:
        return replace(asked, log2_change=change)
    reason = f"{wrapper}: {describe(change)} instead of {describe(before)}"
    return replace(asked, log2_change=change, reasons=(*asked.reasons, reason))


def batch_gradient_sqr(signals: Signals) -> Array:
    """Return the squared norm of the batch gradient, its noise included: |G|^2 + tr(Sigma) / B.

    Tests that were published for the norm of the gradient in hand want this one, not the unbiased
    estimate of |G|^2 that `Signals.grad_sqr` holds.
    """
    return np.asarray(signals.grad_sqr) + np.asarray(signals.noise_trace) / signals.batch_size


def check(is_right: bool, expected: str, value: object) -> None:
    """Refuse a setting: raise `ConfigurationError` with what was expected and what came."""
    if not is_right:
        raise ConfigurationError(f"{expected}; got {value}.")


def mean_start(shape: tuple[int, ...]) -> Mean:
    """Return the running mean of nothing."""
    return np.zeros(shape), np.zeros(shape)


def mean_add(mean: Mean, value: ArrayLike, decay: ArrayLike) -> Mean:
    """Add a value to an exponential running mean; entries that are not finite leave it as it is.

    Args:
        mean: What `mean_start` or the last call returned.
        value: The new value, shape (...).
        decay: Weight of the past in [0, 1). A decay meant for one optimizer step is raised to the
            number of steps that `value` stands for.
    """
    total, weight = mean
    value = number(value)
    good = isfinite(value)
    keep = where(good, decay, 1.0)
    return keep * total + (1.0 - keep) * where(good, value, 0.0), keep * weight + (1.0 - keep)


def mean_value(mean: Mean) -> Array:
    """Return the debiased mean, NaN where nothing was added yet."""
    total, weight = mean
    total, weight = number(total), number(weight)
    return total / where(weight > 0, weight, np.nan)


def seeds(seed: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return one independent seed a run; a single run gets the first."""
    index = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64).reshape(shape)
    with np.errstate(over="ignore"):
        return np.asarray(_mix(np.uint64(seed) * _GOLDEN + index + np.uint64(1)))


def uniform(seed: ArrayLike, counter: ArrayLike) -> Array:
    """Return the `counter`-th number of each seed's stream, uniform in [0, 1).

    A pure function, so that a decision that uses it can be replayed: SplitMix64 (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators"), entered at any position.
    """
    with np.errstate(over="ignore"):
        start = np.asarray(seed, dtype=np.uint64)
        bits = _mix(start + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    mixed = np.asarray(value, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
