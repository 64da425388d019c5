"""What every fixed batch size costs on a task: what a policy learns from, and is measured by."""

from __future__ import annotations

import functools
import math
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.fixed_curves import FixedSetting, planned_steps, size_grid
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.agents.executor import Deadline, Executor
from rlbatch.agents.own_tasks.notes import read_note, write_note
from rlbatch.agents.own_tasks.plan import CURVE_SEED, Plan
from rlbatch.agents.own_tasks.target_watch import TargetWatch, lowest_loss
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.files import append_bytes
from rlbatch.signals.record import Coupling

_SEEDS_FILE = "seeds.json"
_FEWEST_CURVES = 5  # of a seed: the default, and two on each side
_FEWEST_STEPS = 10  # of the default run: with fewer there is nothing to decide

cached_task = functools.cache(resolve_task)
"""A task from a file is made once a process."""


class CurveWork(NamedTuple):
    """The fixed sizes of one task, with one seed.

    Attributes:
        plan: Of the training.
        task: Its name.
        number: Of the seed.
        folder: Of the curves.
        identity: What `task_identity` says of the task where the training is.
        known: Content of the file of curves, where the folder is out of reach; else None.
    """

    plan: Plan
    task: str
    number: int
    folder: Path
    identity: str
    known: bytes | None = None

    @property
    def path(self) -> Path:
        """The file of its curves."""
        seed = CURVE_SEED + self.number
        return curve_path(self.folder, self.identity, self.plan.coupling, seed)


@dataclass(frozen=True)
class CurveResult:
    """What they cost.

    Attributes:
        costs: By size, of those that reached the target.
        planned: Length of the task's schedule in steps; None without one.
        curves: Runs that were made now, and not found on the disk.
        added: What is to be appended to the file of curves, where that is out of reach.
    """

    costs: dict[int, float]
    planned: int | None
    curves: int
    added: bytes = b""


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


def own_task(name: str, identity: str) -> Task:
    """Return a task, which is to be the same on every machine.

    Args:
        name: Of the task.
        identity: What `task_identity` says of it where the training is.

    Raises:
        ConfigurationError: This machine has other files.
    """
    task = cached_task(name)
    if identity_here(name) != identity:
        raise ConfigurationError(
            f"{socket.gethostname()} has another task {name!r} than the machine that asked. Install"
            " the same version and put the same files at the same paths on every node."
        )
    return task


@functools.cache
def identity_here(name: str) -> str:
    """Return what `task_identity` says of a task on this machine, asked once a process."""
    return task_identity(name, cached_task(name))


def wanted_sizes(plan: Plan, task: Task) -> list[int]:
    """Return the fixed sizes whose cost is needed: those between the plan's starts.

    Of others it is enough that they are no better than the best.
    """
    low, high = min(plan.starts), max(plan.starts)
    return [size for size in size_grid(task) if low <= size / task.batch_size <= high]


def expected_curves(plan: Plan, name: str) -> int:
    """Return about how many fixed runs a seed of a task takes, at most."""
    task = cached_task(name)
    return min(max(len(wanted_sizes(plan, task)), _FEWEST_CURVES), len(size_grid(task)))


def run_curves(work: CurveWork) -> CurveResult:
    """Run the fixed sizes of a task with a seed; what is on the disk is not run again."""
    if work.known is None:
        return _run_curves(work, work.path)
    with tempfile.TemporaryDirectory(prefix="rlbatch-") as folder:
        path = Path(folder) / work.path.name
        path.write_bytes(work.known)
        result = _run_curves(work, path)
        return replace(result, added=path.read_bytes()[len(work.known) :])


def _run_curves(work: CurveWork, path: Path) -> CurveResult:
    plan, task = work.plan, own_task(work.task, work.identity)
    setting = FixedSetting(
        task,
        work.identity,
        CURVE_SEED + work.number,
        Coupling(plan.coupling),
        backend=fastest_backend,
    )
    store = open_curves(path)
    wanted = wanted_sizes(plan, task)
    made: list[int] = []
    found = find_references(
        setting, [plan.clock], start_sizes=wanted, store=store, on_curve=made.append, narrow=True
    )[plan.clock.name]
    costs = found.costs if found.reached else {}
    return CurveResult(costs, planned_steps(setting, store), len(made))


def mean_costs(
    plan: Plan, name: str, results: Sequence[CurveResult], curves: Path | None = None
) -> TaskCosts:
    """Return a task's costs over seeds, as results are counted.

    That is the geometric mean, in which a run that does not arrive counts `UNREACHED_RATIO` times
    the best size's median, and none counts more.

    Args:
        plan: Of the training.
        name: Of the task.
        results: One a seed.
        curves: A file of its curves, from which is told what came of them if none arrives.

    Raises:
        ConfigurationError: No size arrives, or so soon that there is nothing to decide.
    """
    task = cached_task(name)
    grid = sorted(size_grid(task))
    each = np.array([[result.costs.get(size, math.inf) for result in results] for size in grid])
    least = float(np.median(each, axis=1).min())
    if not math.isfinite(least):
        seen = "" if curves is None else lowest_loss(curves)[1]
        raise ConfigurationError(
            f"Task {name!r}: no fixed batch size brought the validation loss to {task.target} in "
            f"most of the runs.{seen} Choose a target that a good run reaches."
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
    plan: Plan,
    folder: Path,
    executor: Executor,
    *,
    until: float,
    patience: float,
    tick: Callable[[], None],
) -> list[TaskCosts]:
    """Run the fixed sizes of all tasks: with the first seed, then with more as time permits.

    With which seeds it was done is noted. A training that goes on takes no others: what was
    compared with these costs stays comparable.

    Args:
        plan: Of the training.
        folder: Of the curves.
        executor: Where they run.
        until: When no further seed is begun, by `time.monotonic`.
        patience: Seconds in which some run of each task is to reach its target.
        tick: Called now and then.

    Raises:
        ConfigurationError: A task's target is out of reach, or reached at once.
    """
    settled = _settled_seeds(plan, folder)
    works = {
        (name, number): _work(plan, name, number, folder, executor.shares_files)
        for number in range(plan.seeds)
        for name in plan.tasks
        if settled is None or number in settled[name]
    }
    found: dict[str, dict[int, CurveResult]] = {name: {} for name in plan.tasks}
    needed = len(plan.tasks) if settled is None else len(works)
    rounds = math.ceil(len(plan.tasks) / executor.width)  # some tasks wait for others
    first = {name: works[name, 0].path for name in plan.tasks}
    watch = TargetWatch(first, rounds * patience)

    def look() -> None:
        tick()
        watch.look()

    queue, deadline = deque(works.items()), Deadline(until, needed)
    for (name, number), result in executor.run(run_curves, queue, look, deadline):
        found[name][number] = result
        if result.added:
            append_bytes(works[name, number].path, result.added)
        watch.ended(name)
    seeds = {name: sorted(found[name]) for name in plan.tasks}
    write_note(folder / _SEEDS_FILE, seeds)
    return [
        mean_costs(plan, name, [found[name][number] for number in seeds[name]], first[name])
        for name in plan.tasks
    ]


def _settled_seeds(plan: Plan, folder: Path) -> dict[str, list[int]] | None:
    """Return the seeds of each task that its costs were taken from; None if they were not yet."""

    def seeds(known: Any) -> dict[str, list[int]]:
        return {name: [int(number) for number in known[name]] for name in plan.tasks}

    return read_note(folder / _SEEDS_FILE, seeds)


def _work(plan: Plan, name: str, number: int, folder: Path, shares_files: bool) -> CurveWork:
    identity = identity_here(name)
    work = CurveWork(plan, name, number, folder, identity)
    if shares_files:
        return work
    open_curves(work.path)  # begins it with what ships
    return work._replace(known=work.path.read_bytes() if work.path.exists() else b"")


def count_curves(folder: Path) -> int:
    """Return how many fixed runs a folder holds."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
