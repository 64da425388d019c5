"""The runs of fixed sizes and lengths from which a task's frontier is made: resumable, kept.

Sizes are the task's own times powers of two, lengths a quarter to twice the planned one, each with
its own full schedule. Only the ends of runs count, so they are validated at their ends only. The
runs do not depend on the clock: cost follows from steps, and one set serves every profile.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.curve_files import open_curves
from rlbatch.agents.evaluate.curve_store import CurveKey, CurveStore
from rlbatch.agents.evaluate.fixed_curves import FixedSetting, cadence_key, size_grid
from rlbatch.agents.evaluate.frontier import FixedEnd, Frontier
from rlbatch.envs.fixed_run import Curve, fixed_run_curve

FRONTIER_SEEDS = 4
"""Fewest seeds whose mean makes the frontier."""

LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Lengths of run, relative to the planned one."""

SIZE_SHIFTS = range(-2, 7)
"""Powers of two by which fixed sizes differ from the task's own."""

MOST_STEPS, FEWEST_STEPS = 2.0, 16
"""A fixed run takes at most this multiple of the planned steps, and at least so many steps."""

_NEVER = 1e9  # validations grow so far apart that only the first and the last are made


@dataclass(frozen=True)
class Plan:
    """A fixed run to make: its size, and its length in steps at the task's batch size."""

    batch_size: int
    planned_steps: int


def plans(setting: FixedSetting, planned: int) -> list[Plan]:
    """Return the fixed runs that make a frontier, the user's own size and length first.

    Small sizes are followed as far as `MOST_STEPS` allows: on no device do they pay at lengths
    where they take far more steps than the user's run.

    Args:
        setting: Of the task.
        planned: Steps of the user's run at the task's batch size.
    """
    base = setting.task.batch_size
    sizes = [s for s in size_grid(setting.task) if round(math.log2(s / base)) in SIZE_SHIFTS]
    found: list[Plan] = []
    for length in sorted(LENGTHS, key=lambda length: abs(math.log(length))):
        steps = max(1, round(length * planned))
        for size in sizes:
            taken = steps * base / size
            if FEWEST_STEPS <= taken <= MOST_STEPS * planned or (size == base and length == 1.0):
                found.append(Plan(size, steps))
    return found


class FrontierRuns:
    """The fixed runs of one task, coupling and seed, each made once."""

    def __init__(self, setting: FixedSetting, store: CurveStore) -> None:
        """Take what the store has.

        Args:
            setting: Task, seed and coupling.
            store: Where the ends of runs are kept.
        """
        cadence = replace(setting.cadence, validation_growth=_NEVER)
        self.setting, self.store = replace(setting, cadence=cadence), store

    def end(self, plan: Plan) -> Curve:
        """Return how the run ended, as a curve of one validation; it is made if it is not known."""
        key = self._key(plan)
        known = self.store.get(key)
        if known is None:
            known = self._run(plan)
            self.store.put(key, known)
        return known

    def knows(self, plan: Plan) -> bool:
        """Return whether a run has been made."""
        return self.store.get(self._key(plan)) is not None

    def _key(self, plan: Plan) -> CurveKey:
        setting = self.setting
        return CurveKey(
            task=setting.task_id,
            seed=setting.seed,
            coupling=setting.coupling.value,
            batch_size=plan.batch_size,
            cadence=cadence_key(setting.cadence),
            planned_steps=plan.planned_steps,
            target=None,
        )

    def _run(self, plan: Plan) -> Curve:
        setting = self.setting
        rows = fixed_run_curve(
            setting.task,
            plan.batch_size,
            seed=setting.seed,
            coupling=setting.coupling,
            max_samples=plan.planned_steps * setting.task.batch_size,
            cadence=setting.cadence,
            planned_steps=plan.planned_steps,
            backend=setting.backend,
        )
        last = rows.val_loss[-1] if rows.val_loss and not rows.diverged else math.nan
        steps, samples = (x[-1] if x else 0 for x in (rows.steps, rows.samples))
        return Curve((steps,), (samples,), (last,), diverged=rows.diverged)


def make_frontier(runs: Sequence[FrontierRuns], made: Sequence[Plan], clock: CostClock) -> Frontier:
    """Return the frontier on a clock: at each size and length, the mean loss over the seeds.

    The mean is that of logarithms, so that one seed weighs as much as another; a size and length of
    which one seed was lost counts as lost.

    Args:
        runs: One a seed.
        made: The sizes and lengths.
        clock: A computed one.
    """
    ends: list[FixedEnd] = []
    for plan in made:
        found = [one.end(plan) for one in runs]
        losses = np.array([end.val_loss[0] for end in found])
        whole = bool(np.all(np.isfinite(losses) & (losses > 0)))
        setting = runs[0].setting
        steps = found[0].steps[0]
        cost = clock.run_cost(steps, plan.batch_size, setting.dataset_size, setting.task.batch_size)
        loss = float(np.exp(np.log(losses).mean())) if whole else math.inf
        samples = float(plan.planned_steps * setting.task.batch_size)
        ends.append(FixedEnd(plan.batch_size, samples, float(cost), loss))
    return Frontier(ends)


@dataclass(frozen=True)
class FrontierWork:
    """The fixed runs of one seed, to be made before the runs that are held against them.

    Attributes:
        setting: Task, seed and coupling.
        planned: Steps of the user's run.
        path: File of the curves.
    """

    setting: FixedSetting
    planned: int
    path: Path


def run_frontier(
    work: FrontierWork, on_end: Callable[[], None] | None = None, parent: int = 0
) -> None:
    """Make what is missing.

    Args:
        work: What to run.
        on_end: Called after each run.
        parent: Process without which to stop; 0 for none.
    """
    runs = FrontierRuns(work.setting, open_curves(work.path))
    for plan in plans(work.setting, work.planned):
        if parent and os.getppid() != parent:
            return
        runs.end(plan)
        if on_end is not None:
            on_end()


def made_ends(work: FrontierWork) -> int:
    """Return how many of a work's runs its file holds; what ships is put there first."""
    runs = FrontierRuns(work.setting, open_curves(work.path))
    return sum(runs.knows(plan) for plan in plans(work.setting, work.planned))
