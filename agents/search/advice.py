"""An advice about the batch size, from the noise of a short probe and the cost of steps.

A run at size B needs S (1 + phi / B) steps to its target (McCandlish et al. 2018, "An Empirical
Model of Large-Batch Training", equation 2.7), so that it costs (1 + phi / B) c(B) S, with phi the
gradient noise scale and c(B) the cost of a step. The probe sees the beginning of one run. What phi
is over the whole of it varies from task to task: on average it is that of the probe, within a
factor of two (`SPREAD`; scripts/measure_advice.py holds the advice against sweeps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.run import largest_batch_size
from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.probe import Probe
from rlbatch.envs.profiles import step_cost
from rlbatch.envs.task import Task, smallest_batch_size
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Array

SPREAD = 0.7
"""Standard deviation, over tasks, of the natural logarithm of a run's phi over the probe's."""

LOSS_EXPONENT = 0.3
"""How the loss falls with the samples, for runs of so many epochs."""

USEFUL = 1.1
"""Up to this multiple of the least cost a larger size is still useful."""

WORTH = 0.05
"""A size whose expected saving is smaller is not worth the change."""

DRAWS = 500
_PHASES = np.linspace(0.05, 1.0, 12)  # of a run, by progress
_LARGEST_SCALE = 1e6  # of a gradient that is lost in its noise
_SEED = 0


@dataclass(frozen=True)
class Expected:
    """An expected share, with its 80% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        # Adding zero makes -0.0 positive: no "-0%".
        value, low, high = (round(x, 2) + 0.0 for x in (self.value, self.low, self.high))
        return f"{value:.0%} [{low:.0%}, {high:.0%}]"


@dataclass(frozen=True)
class Advice:
    """What is advised.

    Attributes:
        batch_size: The size to take; the user's own where nothing is worth the change.
        default: The user's own.
        largest_useful: Largest size that is expected to cost at most a tenth more than the best.
        noise_scale: Of the probe: median of its resamples, with their 80% interval.
        gain: Share of the cost that the advised size saves over the user's own.
        ramp_gain: Share that a size which follows the noise, as of a controller or a ramp, saves
            over the best constant one, at most.
        sizes: All sizes that were weighed.
        costs: Their expected costs over that of the user's own size.
    """

    batch_size: int
    default: int
    largest_useful: int
    noise_scale: Expected
    gain: Expected
    ramp_gain: Expected
    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def leave(self) -> bool:
        """Nothing is worth a change."""
        return self.batch_size == self.default


def advise(task: Task, probe: Probe, clock: CostClock, goal: Goal | None = None) -> Advice:
    """Return the advice for a task on a clock.

    Args:
        task: What is trained.
        probe: Of its noise.
        clock: What counts as cost; one that can be computed.
        goal: What is looked for; None for a target.

    Raises:
        ConfigurationError: The clock has no profile.
    """
    profile, weights = clock.profile, clock.weights
    if profile is None:
        raise ConfigurationError("An advice needs the costs of steps: measure a profile first.")
    low, high, sizes = smallest_batch_size(task), largest_batch_size(task), list[int]()
    for power in range(-16, 33):
        size = round(task.batch_size * 2.0**power)
        if low <= size <= high and size not in sizes:
            sizes.append(size)
    return advise_size(
        task.batch_size,
        sizes,
        lambda size: step_cost(profile, weights, size, task.batch_size),
        probe,
        quality_weight(goal),
    )


def quality_weight(goal: Goal | None) -> float:
    """Return the weight of what a sample is worth against what it costs, both as logarithms.

    To a target both count alike. A run of so many epochs scores loss^(1-e) cost^e, and its loss
    falls with the worth of its samples to the power of `LOSS_EXPONENT`.
    """
    if goal is None or goal.kind != "epochs":
        return 1.0
    if goal.efficiency == 0.0:
        return math.inf
    return (1.0 - goal.efficiency) * LOSS_EXPONENT / goal.efficiency


def advise_size(
    default: int,
    sizes: Sequence[int],
    cost: Callable[[Array], Array],
    probe: Probe,
    weight: float = 1.0,
) -> Advice:
    """Return the advice for what a probe saw.

    Args:
        default: The user's size.
        sizes: Sizes to weigh, the user's own among them, rising.
        cost: Cost of a step at sizes of any shape.
        probe: Noise at the beginning of a run.
        weight: See `quality_weight`.
    """
    grid = np.array(sizes, dtype=np.float64)
    base = sizes.index(default)
    probed, phases = _draw(probe)
    worth = np.log1p(grid / phases[..., None])  # log of 1 / efficiency: (draws, phases, sizes)
    logs = worth if math.isinf(weight) else weight * worth + np.log(cost(grid) / grid)
    whole = np.log(np.exp(logs).mean(axis=1))  # of a constant size: (draws, sizes)
    expected = whole.mean(axis=0)
    best = int(np.argmin(expected))
    gain = _expected(-np.expm1(whole[:, best] - whole[:, base]))
    chosen = best if gain.value >= WORTH else base
    following = np.log(np.exp(logs.min(axis=2)).mean(axis=1))
    useful = np.flatnonzero(expected <= expected.min() + math.log(USEFUL))
    low, middle, high = np.quantile(probed, [0.1, 0.5, 0.9])
    return Advice(
        batch_size=sizes[chosen],
        default=default,
        largest_useful=max(sizes[int(useful.max())], sizes[chosen]),
        noise_scale=Expected(float(middle), float(low), float(high)),
        gain=gain if chosen == best else Expected(0.0, 0.0, 0.0),
        ramp_gain=_expected(-np.expm1(following - whole.min(axis=1))),
        sizes=tuple(sizes),
        costs=tuple(float(value) for value in np.exp(expected - expected[base])),
    )


def _draw(probe: Probe) -> tuple[Array, Array]:
    """Return resampled noise scales of the probe, and of the phases of the run that follows.

    The points of the probe are drawn again and again. Within a run the scale grows with a power of
    the progress, as it did within the probe; on average over a run it is the probe's, times what
    tasks vary by.

    Returns:
        Shapes (draws,) and (draws, phases).

    Raises:
        ConfigurationError: The probe measured nothing.
    """
    known = [p for p in probe.points if math.isfinite(p.grad_sqr) and math.isfinite(p.noise_trace)]
    if not known:
        raise ConfigurationError(
            "The probe ended before any noise could be measured. Give it more --steps; a batch of "
            "one sample cannot be divided."
        )
    rng = np.random.default_rng(_SEED)
    weight, trace, signal, samples = (
        np.array([getattr(p, name) for p in known], dtype=np.float64)
        for name in ("measurements", "noise_trace", "grad_sqr", "samples")
    )
    pick = rng.integers(len(known), size=(DRAWS, len(known)))
    scale = _ratio((weight * trace)[pick].sum(axis=1), (weight * signal)[pick].sum(axis=1))
    half = samples[np.searchsorted(np.cumsum(weight), weight.sum() / 2)]
    late = samples[pick] > half
    parts = [
        _ratio(
            (weight * trace)[pick].sum(axis=1, where=where),
            (weight * signal)[pick].sum(axis=1, where=where),
        )
        for where in (~late, late)
    ]
    # The middles of the two halves are a factor of three apart.
    growth = np.clip(np.log(parts[1] / parts[0]) / math.log(3.0), 0.0, 1.0)
    shape = _PHASES ** growth[:, None]
    run = scale * np.exp(SPREAD * rng.standard_normal(DRAWS))
    return scale, run[:, None] * shape / shape.mean(axis=1, keepdims=True)


def _ratio(trace: Array, signal: Array) -> Array:
    """Return noise scales; where the gradient is lost in the noise, the largest."""
    trace = np.maximum(trace, 1e-300)
    return np.clip(trace / np.maximum(signal, trace / _LARGEST_SCALE), 1e-3, _LARGEST_SCALE)


def _expected(values: Array) -> Expected:
    low, high = np.quantile(values, [0.1, 0.9])
    return Expected(float(values.mean()), float(low), float(high))
