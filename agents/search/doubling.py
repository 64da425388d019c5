"""The procedure by hand: start small, double, look, and stop when it no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.summary import Point, best, points, stop_rule
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.errors import ConfigurationError

RATE_STEP = 1.0
"""Between two learning rates that are tried, as log2."""

FARTHEST_RATE = 4.0
"""How far from the coupled rate is looked, as log2."""


@dataclass(frozen=True)
class Doubling:
    """How sizes are gone through.

    Attributes:
        first: The first size.
        largest: No size is beyond it.
        factor: From one size to the next.
        patience: Sizes in a row without an improvement that end the search.
        min_improvement: Relative improvement of the score that counts as one.
        seeds: Runs of each size and rate; their seeds are 0, 1, 2 ...
        tune_rate: Look for the best learning rate at each size.
        stop_factor: Multiple of the best cost so far at which a run to a target is given up.
    """

    first: int
    largest: int
    factor: float = 2.0
    patience: int = 2
    min_improvement: float = 0.01
    seeds: int = 3
    tune_rate: bool = False
    stop_factor: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what would never start or never end."""
        if not 1 <= self.first <= self.largest:
            raise ConfigurationError(
                f"The first size must lie between 1 and the largest, {self.largest}, "
                f"got {self.first}."
            )
        if not (self.factor > 1.0 and self.stop_factor > 1.0):
            raise ConfigurationError(
                "The factors from size to size and of giving up must be above 1, got "
                f"{self.factor} and {self.stop_factor}."
            )
        if self.patience < 1 or self.seeds < 1 or not 0 <= self.min_improvement < 1:
            raise ConfigurationError(
                "patience and seeds must be at least 1 and min_improvement from 0 to 1, got "
                f"{self.patience}, {self.seeds}, {self.min_improvement}."
            )

    def sizes(self) -> list[int]:
        """Return the sizes in the order in which they are tried, the largest in any case."""
        found: list[int] = []
        size = float(self.first)
        while round(size) <= self.largest:
            if not found or round(size) > found[-1]:
                found.append(round(size))
            size *= self.factor
        return found if found[-1] == self.largest else [*found, self.largest]


def next_trials(
    plan: Doubling, goal: Goal, trials: Mapping[TrialSpec, Outcome]
) -> list[tuple[TrialSpec, Stop]]:
    """Return the trials to run now, given the finished ones; none when the search is over.

    The same finished trials give the same answer, so a search goes on where it was killed.
    """
    visited: dict[TrialSpec, Outcome] = {}
    without, centre = 0, 0.0
    reached: Point | None = None
    for size in plan.sizes():
        stop = stop_rule(visited, goal, plan.stop_factor, reached)
        here, missing = _at_size(plan, goal, size, centre, trials)
        if missing:
            return [(spec, stop) for spec in missing]
        visited |= here
        if not all(outcome.fits for outcome in here.values()):
            return []  # nor would a larger one
        found = points(visited, goal)
        leader = best(found)
        at_size = best([point for point in found if point.batch_size == size])
        centre = centre if at_size is None else at_size.rate
        if _improved(leader, reached, plan.min_improvement):
            without = 0
        else:
            without += 1
        reached = leader
        # Before any size got there, larger ones may.
        if without >= plan.patience and leader is not None:
            return []
    return []


def _improved(leader: Point | None, before: Point | None, threshold: float) -> bool:
    if leader is None or before is None:
        return leader is not before
    return leader.score.value < before.score.value * (1.0 - threshold)


def _at_size(
    plan: Doubling, goal: Goal, size: int, centre: float, trials: Mapping[TrialSpec, Outcome]
) -> tuple[dict[TrialSpec, Outcome], list[TrialSpec]]:
    """Return a size's finished trials, and those that are wanted next."""
    rates = [centre - RATE_STEP, centre, centre + RATE_STEP] if plan.tune_rate else [centre]
    done: dict[TrialSpec, Outcome] = {}
    while True:
        wanted = [TrialSpec(size, rate, seed) for rate in rates for seed in range(plan.seeds)]
        done = {spec: trials[spec] for spec in wanted if spec in trials}
        missing = [spec for spec in wanted if spec not in trials]
        if missing and not all(outcome.fits for outcome in done.values()):
            missing = []  # one that does not fit speaks for all of its size
        if missing or not plan.tune_rate:
            return done, missing
        leader = best(points(done, goal))
        beyond = _beyond(rates, leader)
        if beyond is None:
            return done, []
        rates = sorted([*rates, beyond])


def _beyond(rates: list[float], leader: Point | None) -> float | None:
    """Return the next rate where the best one is at the end of those tried."""
    if leader is None or not math.isfinite(leader.score.value):
        return None
    if leader.rate == min(rates):
        beyond = min(rates) - RATE_STEP
    elif leader.rate == max(rates):
        beyond = max(rates) + RATE_STEP
    else:
        return None
    return beyond if abs(beyond) <= FARTHEST_RATE else None
