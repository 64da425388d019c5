"""A `DeviceProfile` from measured steps, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlbatch.agents.search.step_costs import StepCost
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.errors import ConfigurationError, MissingExtraError
from rlbatch.signals.record import Array

try:
    from scipy.optimize import least_squares, nnls
except ImportError as missing:
    raise MissingExtraError("scipy", "train") from missing

RESAMPLES = 200
FEWEST_SIZES = 3
_SHARPEST = 8.0  # beyond that nothing can be told apart
_SEED = 0


@dataclass(frozen=True)
class FittedProfile:
    """A profile and how sure it is.

    Attributes:
        profile: The profile.
        intervals: 95% bootstrap intervals of its fields, over the rounds of timing.
        sizes: Micro-batch sizes of the curve, shape (n,).
        low: Lower end of the interval of a step's seconds there, shape (n,).
        high: Upper end.
        error: Root mean square of the relative errors of the fitted seconds at the timed sizes.
        energy_known: The powers were measured; else they are `DeviceProfile`'s own.
    """

    profile: DeviceProfile
    intervals: dict[str, tuple[float, float]]
    sizes: Array
    low: Array
    high: Array
    error: float
    energy_known: bool


def fit_profile(
    name: str, measured: Sequence[StepCost], max_micro_batch_size: int
) -> FittedProfile:
    """Return the profile that fits timings best, all relative errors counting alike.

    Args:
        name: Of the profile.
        measured: Timings, with equally many rounds.
        max_micro_batch_size: Largest micro-batch that fits.

    Raises:
        ConfigurationError: Fewer than three sizes were timed, for three coefficients.
    """
    if len(measured) < FEWEST_SIZES:
        raise ConfigurationError(
            f"A profile needs timings of at least {FEWEST_SIZES} sizes, got {len(measured)}. "
            "Allow larger ones, or more memory."
        )
    sizes = np.array([cost.size for cost in measured], dtype=np.float64)
    passes = np.array([cost.pass_seconds for cost in measured])
    updates = np.array([cost.update_seconds for cost in measured])
    fields = _fit(sizes, np.median(passes, axis=1), float(np.median(updates)))
    profile = _profile(name, max_micro_batch_size, fields)
    grid = np.exp2(np.arange(0.0, math.log2(sizes[-1]) + 0.01, 0.25))
    rng, rounds = np.random.default_rng(_SEED), passes.shape[1]
    drawn: list[dict[str, float]] = []
    for _ in range(RESAMPLES):
        pick = rng.integers(rounds, size=rounds)
        median = np.median(passes[:, pick], axis=1)
        drawn.append(_fit(sizes, median, float(np.median(updates[:, pick]))))
    curves = np.array([_seconds(grid, one) for one in drawn])
    predicted = _seconds(sizes, fields) - fields["update_seconds"]
    watts = _watts(measured, profile)
    if watts is not None:
        profile = replace(profile, idle_watts=watts[0], busy_watts=watts[1])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return FittedProfile(
        profile=profile,
        intervals={key: _interval([one[key] for one in drawn]) for key in fields},
        sizes=grid,
        low=low,
        high=high,
        error=float(np.sqrt(np.mean((predicted / np.median(passes, axis=1) - 1.0) ** 2))),
        energy_known=watts is not None,
    )


def _profile(name: str, largest: int, fields: dict[str, float]) -> DeviceProfile:
    return DeviceProfile(
        name,
        launch_seconds=fields["launch_seconds"],
        sample_seconds=fields["sample_seconds"],
        update_seconds=fields["update_seconds"],
        sharpness=fields["sharpness"],
        max_micro_batch_size=largest,
    )


def _fit(sizes: Array, seconds: Array, update: float) -> dict[str, float]:
    logs = np.log(seconds)

    def residuals(values: Array) -> Array:
        launch, sample, excess = np.exp(values)
        return np.log(_pass_seconds(sizes, launch, sample, 1.0 + excess)) - logs

    start = [math.log(seconds[0]), math.log(seconds[-1] / sizes[-1]), 0.0]
    bounds = ([-30.0, -30.0, -6.0], [10.0, 10.0, math.log(_SHARPEST - 1.0)])
    found = least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=0.1).x
    return {
        "launch_seconds": float(np.exp(found[0])),
        "sample_seconds": float(np.exp(found[1])),
        "update_seconds": update,
        "sharpness": float(1.0 + np.exp(found[2])),
    }


def _pass_seconds(sizes: Array, launch: float, sample: float, sharpness: float) -> Array:
    """Return the profile's formula without divisions; the larger part in front, for the powers."""
    part = sizes * sample
    large, small = np.maximum(part, launch), np.minimum(part, launch)
    return large * (1.0 + (small / large) ** sharpness) ** (1.0 / sharpness)


def _seconds(sizes: Array, fields: dict[str, float]) -> Array:
    one = _pass_seconds(
        sizes, fields["launch_seconds"], fields["sample_seconds"], fields["sharpness"]
    )
    return one + fields["update_seconds"]


def _watts(measured: Sequence[StepCost], profile: DeviceProfile) -> tuple[float, float] | None:
    """Return the powers of `DeviceProfile.step_joules` that fit best; None without joules."""
    known = [(cost.size, cost.joules) for cost in measured if cost.joules]
    if len(known) < 2:
        return None
    sizes = np.array([size for size, _ in known], dtype=np.float64)
    joules = np.array([value for _, value in known])
    columns = np.stack([profile.step_seconds(sizes), sizes * profile.sample_seconds], axis=1)
    idle, busy = nnls(columns / joules[:, None], np.ones(len(known)))[0]
    return float(idle), float(busy)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
