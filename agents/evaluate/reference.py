"""The best fixed batch size in hindsight: what a perfect sweep that costs nothing would have found.

The grid is the task's batch size times powers of two. Each size's learning curve is computed once
and serves every computed clock, since cost follows from steps. From the default outwards a size
stops as soon as it costs more than the best so far on every clock; what a full sweep would find is
unchanged by that. Where it is enough, sizes far from the best are not tried at all.

With AdaScale a fixed run measures gradient noise, too; its cost here is that of undivided steps,
so the reference is a little better than a real run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import (
    FixedCurves,
    FixedSetting,
    planned_steps,
    size_grid,
)
from rlbatch.envs.objectives import BUDGET_REACH, UNREACHED_RATIO

_MISSES = 2
"""Sizes in a row, outwards, that are no better than the best: those beyond are hopeless."""


@dataclass(frozen=True)
class Reference:
    """Fixed batch sizes on one clock.

    Attributes:
        cost: Of the best size. Where no size reached the target, the cost at which the default was
            given up: a sweep has spent at least that.
        batch_size: The best size.
        reached: Some size reached the target.
        costs: Cost of each size that reached the target before it was given up.
    """

    cost: float
    batch_size: int
    reached: bool
    costs: dict[int, float]

    def cost_of(self, batch_size: int) -> float:
        """Return the cost of staying at a size, at most the cap times the best."""
        return min(self.costs.get(batch_size, math.inf), UNREACHED_RATIO * self.cost)


def find_references(
    setting: FixedSetting,
    clocks: Sequence[CostClock],
    *,
    start_sizes: Sequence[int] = (),
    store: CurveStore | None = None,
    on_curve: Callable[[int], None] | None = None,
    narrow: bool = False,
) -> dict[str, Reference]:
    """Return the reference of the `target` objective on each clock, by the clock's name.

    Args:
        setting: Task, seed and coupling.
        clocks: The clocks.
        start_sizes: Sizes whose own cost must be known up to the cap, as the default's is.
        store: Where curves are kept.
        on_curve: Called with each batch size whose curve is about to be run.
        narrow: Try no size beyond two in a row that are no better than the best, `start_sizes`
            aside: half of the runs, and the same result where cost has one minimum.
    """
    store = CurveStore() if store is None else store
    curves = FixedCurves(
        setting, store, setting.task.target, planned_steps(setting, store), on_curve
    )
    computed = [clock for clock in clocks if clock.profile is not None]
    groups = ([computed] if computed else []) + [[c] for c in clocks if c.profile is None]
    found: dict[str, Reference] = {}
    for group in groups:
        found |= _Search(curves, group, start_sizes, narrow).run()
    return found


class _Search:
    """Costs of every size on clocks that are served by the same curves."""

    def __init__(
        self,
        curves: FixedCurves,
        clocks: Sequence[CostClock],
        start_sizes: Sequence[int],
        narrow: bool,
    ) -> None:
        self._curves, self._clocks, self._narrow = curves, clocks, narrow
        self._default = curves.setting.task.batch_size
        self._grid = size_grid(curves.setting.task)
        extra = [size for size in dict.fromkeys(start_sizes) if size not in self._grid]
        self._sizes = [*self._grid, *extra]
        self._wanted = {self._default, *start_sizes}
        self._costs: dict[str, dict[int, float]] = {clock.name: {} for clock in clocks}
        self._default_spent: dict[str, float] = {}

    def run(self) -> dict[str, Reference]:
        # The second round goes on with sizes that the first had to limit without knowing the best.
        for _ in range(2):
            misses = {True: 0, False: 0}  # above and below the default
            for size in self._sizes:
                above = size > self._default
                if self._narrow and misses[above] >= _MISSES and size not in self._wanted:
                    continue
                self._visit(size)
                misses[above] = misses[above] + 1 if self._misses(size) else 0
        return {clock.name: self._reference(clock.name) for clock in self._clocks}

    def _best(self, name: str) -> float:
        known = self._costs[name]
        return min((known[size] for size in self._grid if size in known), default=math.inf)

    def _misses(self, size: int) -> bool:
        """Return whether a size is not the best so far on any clock, and there is a best one."""
        names = [clock.name for clock in self._clocks]
        best = [self._best(name) for name in names]
        return all(
            math.isfinite(least) and self._costs[name].get(size, math.inf) > least
            for name, least in zip(names, best, strict=True)
        )

    def _visit(self, size: int) -> None:
        multiple = UNREACHED_RATIO if size in self._wanted else 1.0
        limits = {clock: multiple * self._best(clock.name) for clock in self._clocks}
        timed = self._clocks[0].profile is None
        if timed:
            limit = limits[self._clocks[0]]
            curve = self._curves.curve(size, self._curves.longest, limit)
        else:
            steps = max(self._curves.steps_for(clock, size, x) for clock, x in limits.items())
            curve = self._curves.curve(size, steps)
        for clock in self._clocks:
            if timed:
                spent = curve.seconds[-1] if curve.seconds else 0.0
            else:
                last = curve.steps[-1] if curve.steps else 0
                spent = float(self._curves.cost(clock, size, last))
            if curve.reached:
                self._costs[clock.name][size] = spent
            if size == self._default:
                self._default_spent[clock.name] = spent

    def _reference(self, name: str) -> Reference:
        costs = self._costs[name]
        if not any(size in costs for size in self._grid):
            return Reference(self._default_spent[name], self._default, reached=False, costs=costs)
        best = min((size for size in self._grid if size in costs), key=lambda s: (costs[s], s))
        return Reference(costs[best], best, reached=True, costs=costs)


def budget_planned_steps(setting: FixedSetting, clock: CostClock, budget: float) -> int | None:
    """Return the steps that a budget buys at the default size: the length of a schedule, if any."""
    if setting.task.scheduler is None:
        return None
    if clock.profile is None:
        return planned_steps(setting, CurveStore())
    curves = FixedCurves(setting, CurveStore(), None, None)
    return curves.steps_for(clock, setting.task.batch_size, budget)


def budget_reference(
    setting: FixedSetting,
    clock: CostClock,
    budget: float,
    val_loss: float,
    *,
    store: CurveStore | None = None,
    on_curve: Callable[[int], None] | None = None,
) -> Reference:
    """Return at what cost each fixed size first had a validation loss, under a budget.

    The reference of a controlled run with a budget is the cost at which the best fixed size first
    had the lowest validation loss of the controlled run. Fixed sizes run to `BUDGET_REACH` times
    the budget; one that is not there by then counts with that cost. So the ratio, budget over
    reference cost, is 1 for a run that equals the best fixed size, and 1 / `BUDGET_REACH` at best.

    Args:
        setting: Task, seed and coupling.
        clock: What the budget is counted in.
        budget: Cost at which the controlled run ended.
        val_loss: Its lowest validation loss.
        store: Where curves are kept.
        on_curve: Called with each batch size whose curve is about to be run.
    """
    store = CurveStore() if store is None else store
    planned = budget_planned_steps(setting, clock, budget)
    curves = FixedCurves(setting, store, None, planned, on_curve)
    limit = BUDGET_REACH * budget
    costs: dict[int, float] = {}
    for size in size_grid(setting.task):
        if clock.profile is None:
            curve = curves.curve(size, curves.longest, limit)
            spent = np.array(curve.seconds)
        else:
            curve = curves.curve(size, curves.steps_for(clock, size, limit))
            spent = np.asarray(curves.cost(clock, size, np.array(curve.steps)))
        there = np.flatnonzero(np.array(curve.val_loss) <= val_loss)
        first = float(spent[there[0]]) if len(there) else math.inf
        costs[size] = min(first, limit)
    best = min(costs, key=lambda size: (costs[size], size))
    return Reference(costs[best], best, reached=costs[best] < limit, costs=costs)
