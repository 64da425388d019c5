"""What trials say of sizes and rates: means over seeds with intervals, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import MissingExtraError

try:
    from scipy.stats import t as student
except ImportError as missing:
    raise MissingExtraError("scipy", "train") from missing

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A geometric mean with its 95% interval (Student's t on logarithms); none for one value."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def estimate(values: Iterable[float]) -> Estimate:
    """Return the geometric mean of positive values; NaN of none."""
    logs = np.log(np.fromiter(values, dtype=np.float64))
    if not len(logs):
        return Estimate(math.nan)
    mean = float(logs.mean())
    if len(logs) < 2:
        return Estimate(math.exp(mean))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1) * logs.std(ddof=1))
    half /= math.sqrt(len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


@dataclass(frozen=True)
class Point:
    """All trials of one size and rate.

    Attributes:
        batch_size: Samples per optimizer step.
        rate: Multiplies the coupled learning rate, as log2.
        runs: Trials.
        complete: Of these, how many ended as they should.
        stopped: How many were given up as hopeless.
        fits: All were within the memory limit.
        score: Mean over the seeds; a run that did not end as it should counts `UNREACHED_RATIO`
            times the best complete point's score; infinite where there is none.
        cost: Mean of the complete trials.
        loss: Mean of their final validation losses.
        steps: Mean of their steps.
        spent: Cost of all trials, complete or not.
    """

    batch_size: int
    rate: float
    runs: int
    complete: int
    stopped: int
    fits: bool
    score: Estimate
    cost: Estimate
    loss: Estimate
    steps: float
    spent: float

    @property
    def key(self) -> tuple[int, float]:
        """What tells it from others."""
        return self.batch_size, self.rate


def points(trials: Mapping[TrialSpec, Outcome], goal: Goal) -> list[Point]:
    """Return one point a size and rate, sorted by them."""
    groups: dict[tuple[int, float], list[Outcome]] = {}
    for spec, outcome in sorted(trials.items(), key=lambda item: item[0]):
        groups.setdefault((spec.batch_size, spec.rate), []).append(outcome)
    complete = [
        estimate(outcome.score(goal) for outcome in group).value
        for group in groups.values()
        if all(outcome.complete for outcome in group)
    ]
    partly = [o.score(goal) for group in groups.values() for o in group if o.complete]
    worst = UNREACHED_RATIO * min(complete or partly, default=math.inf)
    return [_point(size, rate, group, goal, worst) for (size, rate), group in groups.items()]


def _point(size: int, rate: float, group: Sequence[Outcome], goal: Goal, worst: float) -> Point:
    good = [outcome for outcome in group if outcome.complete]
    scores = [o.score(goal) if o.complete else worst for o in group]
    return Point(
        batch_size=size,
        rate=rate,
        runs=len(group),
        complete=len(good),
        stopped=sum(outcome.stopped for outcome in group),
        fits=all(outcome.fits for outcome in group),
        score=estimate(scores) if all(map(math.isfinite, scores)) else Estimate(math.inf),
        cost=estimate(outcome.cost for outcome in good),
        loss=estimate(max(outcome.loss, 1e-300) for outcome in good),
        steps=float(np.mean([o.steps for o in good])) if good else math.nan,
        spent=sum(outcome.cost for outcome in group),
    )


def best(found: Sequence[Point], tolerance: float = 0.0) -> Point | None:
    """Return the best point: of those whose score is hardly worse than the least, the cheapest.

    Args:
        found: Points; those that did not fit, or where nothing was complete, are left out.
        tolerance: Relative difference of scores that counts for nothing.
    """
    usable = [point for point in found if point.fits and point.complete]
    usable = [point for point in usable if math.isfinite(point.score.value)]
    if not usable:
        return None
    limit = min(point.score.value for point in usable) * (1.0 + tolerance)
    close = [point for point in usable if point.score.value <= limit]
    return min(close, key=lambda point: (point.cost.value, point.score.value, point.key))


def front(found: Sequence[Point]) -> list[Point]:
    """Return the points than which none is both cheaper and lower in loss, by cost."""
    usable = [point for point in found if point.fits and point.complete == point.runs]
    kept: list[Point] = []
    for point in sorted(usable, key=lambda p: (p.cost.value, p.loss.value)):
        if not kept or point.loss.value < kept[-1].loss.value:
            kept.append(point)
    return kept


def stop_rule(
    trials: Mapping[TrialSpec, Outcome], goal: Goal, factor: float, among: Point | None
) -> Stop:
    """Return when further trials are hopeless, given the best point so far; never without one.

    Args:
        trials: All so far.
        goal: What is looked for.
        factor: Multiple of the best cost at which a run to a target is given up.
        among: The best point.
    """
    if among is None:
        return Stop()
    if goal.kind == "target":
        return Stop(max_cost=factor * among.cost.value)
    if goal.kind == "budget":
        return Stop()
    curves = [
        outcome.curve
        for spec, outcome in sorted(trials.items(), key=lambda item: item[0])
        if (spec.batch_size, spec.rate) == among.key and outcome.complete
    ]
    samples = np.array([point[0] for point in curves[0]])
    logs = [
        np.interp(samples, [point[0] for point in curve], np.log([point[2] for point in curve]))
        for curve in curves
    ]
    losses = np.exp(np.mean(logs, axis=0))
    finite = np.isfinite(losses)
    return Stop(None, tuple(samples[finite]), tuple(losses[finite]), among.score.value)
