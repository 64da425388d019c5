"""What every fixed batch size costs on a task: what a policy learns from, and is measured by."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.fixed_curves import FixedSetting, planned_steps, size_grid
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.agents.executor import Deadline, Executor
from rlbatch.agents.own_tasks.plan import CURVE_SEED, Plan
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

_FEWEST_STEPS = 10  # of the default run: with fewer there is nothing to decide

cached_task = functools.cache(resolve_task)
"""A task from a file is made once a process."""


class CurveWork(NamedTuple):
    """The fixed sizes of one task, with one seed."""

    plan: Plan
    task: str
    number: int
    folder: Path


@dataclass(frozen=True)
class CurveResult:
    """What they cost.

    Attributes:
        costs: By size, of those that reached the target.
        planned: Length of the task's schedule in steps; None without one.
        curves: Runs that were made now, and not found on the disk.
        seconds: That they took.
    """

    costs: dict[int, float]
    planned: int | None
    curves: int
    seconds: float


@dataclass(frozen=True)
class TaskCosts:
    """A task with what its fixed sizes cost.

    Attributes:
        name: As in the plan.
        costs: Geometric mean over seeds of every size of the grid, infinite where none arrives.
        planned: Length of the task's schedule in steps; None without one.
    """

    name: str
    costs: dict[int, float]
    planned: int | None

    @property
    def task(self) -> Task:
        """The task itself."""
        return cached_task(self.name)

    @property
    def best_size(self) -> int:
        """The cheapest fixed size."""
        return min(self.costs, key=lambda size: (self.costs[size], size))

    @property
    def reference(self) -> float:
        """What that costs."""
        return self.costs[self.best_size]


def run_curves(work: CurveWork) -> CurveResult:
    """Run the fixed sizes of a task with a seed; what is on the disk is not run again."""
    plan, task = work.plan, cached_task(work.task)
    seed = CURVE_SEED + work.number
    setting = FixedSetting(
        task,
        task_identity(work.task, task),
        seed,
        Coupling(plan.coupling),
        backend=fastest_backend,
    )
    store = open_curves(curve_path(work.folder, setting.task_id, plan.coupling, seed))
    low, high = min(plan.starts), max(plan.starts)
    wanted = [size for size in size_grid(task) if low <= size / task.batch_size <= high]
    made: list[int] = []
    begun = time.perf_counter()
    found = find_references(
        setting, [plan.clock], start_sizes=wanted, store=store, on_curve=made.append
    )[plan.clock.name]
    costs = found.costs if found.reached else {}
    planned = planned_steps(setting, store)
    return CurveResult(costs, planned, len(made), time.perf_counter() - begun)


def mean_costs(plan: Plan, name: str, results: Sequence[CurveResult]) -> TaskCosts:
    """Return a task's costs over seeds, as results are counted.

    That is the geometric mean, in which a run that does not arrive counts `UNREACHED_RATIO` times
    the best size's median, and none counts more.

    Raises:
        ConfigurationError: No size arrives, or so soon that there is nothing to decide.
    """
    task = cached_task(name)
    grid = sorted(size_grid(task))
    each = np.array([[result.costs.get(size, math.inf) for result in results] for size in grid])
    least = float(np.median(each, axis=1).min())
    if not math.isfinite(least):
        raise ConfigurationError(
            f"Task {name!r}: no fixed batch size brought the validation loss to {task.target} in "
            "most of the runs. Choose a target that a good run reaches."
        )
    size: int = len(task.train_set)  # type: ignore[arg-type]
    step = float(plan.clock.run_cost(1, task.batch_size, size, task.batch_size))
    if least < _FEWEST_STEPS * step:
        raise ConfigurationError(
            f"Task {name!r}: a run reaches its target within {_FEWEST_STEPS} steps, and there is "
            "nothing to decide. Choose a lower target."
        )
    logs = np.log(np.minimum(each, UNREACHED_RATIO * least)).mean(axis=1)
    means = np.where(np.isfinite(each).any(axis=1), np.exp(logs), math.inf)
    return TaskCosts(name, dict(zip(grid, map(float, means), strict=True)), results[0].planned)


def all_costs(
    plan: Plan, folder: Path, executor: Executor, *, until: float, tick: Callable[[], None]
) -> list[TaskCosts]:
    """Run the fixed sizes of all tasks: with the first seed, then with more as time permits.

    Args:
        plan: Of the training.
        folder: Of the curves.
        executor: Where they run.
        until: When no further seed is begun, by `time.monotonic`.
        tick: Called now and then.
    """
    works = deque(
        ((name, number), CurveWork(plan, name, number, folder))
        for number in range(plan.seeds)
        for name in plan.tasks
    )
    found: dict[str, dict[int, CurveResult]] = {name: {} for name in plan.tasks}
    deadline = Deadline(until, needed=len(plan.tasks))
    for (name, number), result in executor.run(run_curves, works, tick, deadline):
        found[name][number] = result
    return [
        mean_costs(plan, name, [found[name][number] for number in sorted(found[name])])
        for name in plan.tasks
    ]


def count_curves(folder: Path) -> int:
    """Return how many fixed runs a folder holds."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
