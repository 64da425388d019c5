"""What a search found: the recommended size and rate, why, and what it cost to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rlbatch.agents.search.bandit import Bandit
from rlbatch.agents.search.bayesian import Bayesian
from rlbatch.agents.search.doubling import Doubling
from rlbatch.agents.search.goal import noise_scale_theta
from rlbatch.agents.search.search import Found, Search
from rlbatch.agents.search.summary import Point, best, estimate, front, points
from rlbatch.data.learning_rate import coupling_factor
from rlbatch.envs.task import Task, resolve_task
from rlbatch.signals.record import Coupling


@dataclass(frozen=True)
class Result:
    """What came out of a search.

    Attributes:
        task: Its name.
        method: The search's.
        objective: As on the command line.
        efficiency: See `Goal`.
        lr_coupling: How rates follow sizes.
        profile: The clock.
        points: All sizes and rates.
        recommended: The best; None where no run ended as it should.
        learning_rate: For it; None where AdaScale follows the measured noise.
        front: (size, rate) of the points that nothing else beats in cost and loss both; empty where
            the goal fixes one of them.
        sentence: The choice, explained.
        trials: Runs in all.
        repeated: Of these, those that an earlier call had run.
        search_cost: What all of them spent, on the clock.
        search_seconds: Real seconds of all of them together.
    """

    task: str
    method: str
    objective: str
    efficiency: float
    lr_coupling: str
    profile: str
    points: tuple[Point, ...]
    recommended: Point | None
    learning_rate: float | None
    front: tuple[tuple[int, float], ...]
    sentence: str
    trials: int
    repeated: int
    search_cost: float
    search_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; what is no number is null."""
        return _plain(asdict(self))


def conclude(search: Search, found: Found) -> Result:
    """Return what a search's trials amount to."""
    goal, conditions = search.conditions.goal, search.conditions
    known = points(found.trials, goal)
    eligible = [p for p in known if not found.in_race or p.batch_size in found.in_race]
    tolerance = search.plan.min_improvement if isinstance(search.plan, Doubling) else 0.0
    chosen = best(eligible, tolerance)
    rate = None if chosen is None else learning_rate(conditions.task, conditions.coupling, chosen)
    return Result(
        task=conditions.task,
        method=search.method,
        objective=goal.text,
        efficiency=goal.efficiency,
        lr_coupling=conditions.coupling,
        profile=conditions.profile,
        points=tuple(known),
        recommended=chosen,
        learning_rate=rate,
        front=tuple(p.key for p in front(known)) if goal.kind == "epochs" else (),
        sentence=_explain(search, found, known, chosen, rate),
        trials=len(found.trials),
        repeated=found.repeated,
        search_cost=sum(outcome.cost for outcome in found.trials.values()),
        search_seconds=sum(outcome.seconds for outcome in found.trials.values()),
    )


def learning_rate(task_name: str, coupling: str, point: Point) -> float | None:
    """Return the learning rate at a point; None where it follows the measured noise."""
    if Coupling(coupling) is Coupling.ADASCALE:
        return None
    task = resolve_task(task_name)
    factor = coupling_factor(coupling, point.batch_size, task.batch_size)
    return base_rate(task) * factor * 2.0**point.rate


def base_rate(task: Task) -> float:
    """Return the learning rate that a task's optimizer is made with."""
    with torch.random.fork_rng(devices=[]):
        optimizer = task.optimizer(task.model().parameters())
    return float(optimizer.param_groups[0]["lr"])


def controller_hint(efficiency: float) -> str:
    """Return how to ask a controller for the same balance of efficiency and quality."""
    if efficiency <= 0.0:
        return "--policy epochs --objective epochs=N (no worse a loss, at less cost)"
    if efficiency >= 1.0:
        return "--policy default --objective target (least cost)"
    theta = noise_scale_theta(efficiency)
    if theta == 0.0:
        return "the largest size that fits: no noise is too much at this efficiency"
    return f"--policy noise-scale:theta={theta:.3g}"


def _explain(
    search: Search, found: Found, known: Sequence[Point], chosen: Point | None, rate: float | None
) -> str:
    goal = search.conditions.goal
    if chosen is None:
        limit = search.conditions.memory_limit
        if limit is not None and not any(point.fits for point in known):
            return f"No size fits into {limit:,} bytes: allow more, or start smaller."
        what = "reached the target" if goal.kind == "target" else "ended with a loss"
        return f"No size {what} in all of its runs, so there is nothing to recommend."
    means = {"target": "the least cost to the target", "budget": "the lowest loss for the cost"}
    what = means.get(goal.kind, f"the best score at efficiency {goal.efficiency:g}")
    at = "" if rate is None else f" with a learning rate of {rate:.3g}"
    head = f"Take batch size {chosen.batch_size:,}{at}: it has {what}"
    beside = _neighbours(search, found, known, chosen)
    return f"{head} ({_figure(chosen, goal.kind)}){beside}; {_end(search, found, known, chosen)}."


def _figure(point: Point, kind: str) -> str:
    if kind == "target":
        return f"{point.cost}"
    return f"loss {point.loss}, cost {point.cost.value:.4g}"


def _neighbours(search: Search, found: Found, known: Sequence[Point], chosen: Point) -> str:
    """Say how the sizes beside the chosen one did, and whether that can be told from chance."""
    by_size: dict[int, Point] = {}
    for point in known:
        if point.fits and math.isfinite(point.score.value):
            other = by_size.get(point.batch_size)
            if other is None or point.score.value < other.score.value:
                by_size[point.batch_size] = point
    sizes = sorted(by_size)
    if chosen.batch_size not in sizes:
        return ""
    place = sizes.index(chosen.batch_size)
    texts: list[str] = []
    for size in sizes[max(place - 1, 0) : place] + sizes[place + 1 : place + 2]:
        worse = by_size[size].score.value / chosen.score.value - 1.0
        how = f"{abs(worse):.0%} {'worse' if worse >= 0 else 'better, but dearer'}"
        texts.append(f"{size:,} is {how}{_doubt(search, found, by_size[size], chosen)}")
    return f", {' and '.join(texts)}" if texts else ""


def _doubt(search: Search, found: Found, one: Point, other: Point) -> str:
    """Say whether two points differ by no more than seeds do, compared seed by seed."""
    goal = search.conditions.goal
    ours, theirs = (
        {
            spec.seed: outcome.score(goal)
            for spec, outcome in found.trials.items()
            if (spec.batch_size, spec.rate) == point.key and outcome.complete
        }
        for point in (one, other)
    )
    ratio = estimate(ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
    if ratio.low is None or ratio.high is None or not ratio.low <= 1.0 <= ratio.high:
        return ""
    return " (within the noise between seeds)"


def _end(search: Search, found: Found, known: Sequence[Point], chosen: Point) -> str:
    plan = search.plan
    if isinstance(plan, Bayesian):
        return f"{len(known)} pairs of size and rate were tried"
    if isinstance(plan, Bandit):
        return (
            f"after {len(found.trials)} recurrences {len(found.in_race)} of {len(plan.sizes)} "
            "sizes are still in the race"
        )
    last = max(point.batch_size for point in known)
    if any(not point.fits for point in known):
        return f"the search ended at {last:,}, which does not fit into memory"
    if last == plan.sizes()[-1]:
        return f"the search ended at {last:,}, the largest size allowed"
    return f"the search ended at {last:,}, since larger sizes no longer improve"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
