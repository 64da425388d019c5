"""The fixed-batch learning curves that recipes with real runs need, on all cores."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlbatch.agents.executor import open_executor
from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.curves import compute_table
from rlbatch.envs.random_fit import fitted_table
from rlbatch.envs.task import task_names
from rlbatch.envs.tasks.random_job import RandomJob
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.files import write_atomically

RANDOM_TASKS: Mapping[str, int] = {"random": 2000, "random-long": 600, "random-transformer": 40}
"""How many of each kind a policy is trained on; those behind are for evaluation."""

SEEDS = 8
"""Runs of each point of a built-in task: where the best size differs from run to run, two of them
tell a policy, for good, of a best size that is not the best in others."""

FIRST_SEED = 10_000
"""Benchmarks begin at zero: what they compare with is not to be known from training."""

_Work = tuple[str, str | RandomJob, int]  # table's name, task, seeds
OnTable = Callable[[str, int, int], None]


def make_curves(
    out: Path,
    tasks: Sequence[str] = SMALL_TASKS,
    random_tasks: Mapping[str, int] = RANDOM_TASKS,
    seeds: int = SEEDS,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    on_table: OnTable | None = None,
) -> None:
    """Make the tables that are missing; one that is there is kept, so a stopped run goes on.

    Args:
        out: Folder; made if it does not exist.
        tasks: Built-in tasks.
        random_tasks: How many random tasks of each kind are made, too.
        seeds: Runs of each point, of built-in tasks.
        jobs: Processes; one a core if unset. On a cluster the most tables at the same time.
        cluster: Address of a Ray cluster, as for `open_executor`. Only this process writes to
            `out`.
        on_table: Called with a line about each table, those that are there, and the number of all.

    Raises:
        ConfigurationError: A number is negative, a name is not of a built-in task, or there is no
            such cluster.
    """
    _require_known(tasks, random_tasks, seeds, jobs)
    out.mkdir(parents=True, exist_ok=True)
    all_work: list[_Work] = [(name, name, seeds) for name in tasks]
    for kind, count in random_tasks.items():
        jobs_of_kind = (RandomJob(kind, number) for number in range(count))
        all_work += [(f"{kind}-{job.number:04d}", job, 1) for job in jobs_of_kind]
    queue = deque(
        (item[0], item)
        for item in all_work
        if not _table(out, item[0]).exists() and not _refused(out, item[0]).exists()
    )
    done = len(all_work) - len(queue)
    with open_executor(jobs, cluster, apart=True) as executor:
        for name, (content, line) in executor.run(_make, queue):
            if content is None:
                _refused(out, name).touch()  # so that it is not tried again
            else:
                write_atomically(_table(out, name), content)
            done += 1
            if on_table is not None:
                on_table(line, done, len(all_work))


def _require_known(
    tasks: Sequence[str], random_tasks: Mapping[str, int], seeds: int, jobs: int | None
) -> None:
    for what, number in (("jobs", jobs), ("seeds", seeds)):
        if number is not None and number < 1:
            raise ConfigurationError(f"{what} must be at least 1, got {number}.")
    for kind, number in random_tasks.items():
        if number < 0:
            raise ConfigurationError(f"Expected no less than 0 tasks of {kind}, got {number}.")
    for name in tasks:
        if ":" in name:
            raise ConfigurationError(
                f"These curves are for recipes, which train on built-in tasks; got {name!r}. For a "
                "task of your own `rlbatch train --task` makes what it needs itself."
            )
        if name not in task_names():
            raise UnknownNameError("task", name, task_names())


def _make(item: _Work) -> tuple[bytes | None, str]:
    """Return the content of a table, None where there is nothing to learn, and a line about it."""
    name, task, seeds = item
    begun = time.perf_counter()
    table = (
        compute_table(task, range(FIRST_SEED, FIRST_SEED + seeds))
        if isinstance(task, str)
        else fitted_table(task, seeds)
    )
    seconds = time.perf_counter() - begun
    if table is None:
        return None, f"{name}: nothing to learn, {seconds:.0f} s"
    content = io.BytesIO()
    table.save(content)
    return content.getvalue(), f"{name}: {len(table.points)} points, {seconds:.0f} s"


def _table(out: Path, name: str) -> Path:
    return out / f"{name}.npz"


def _refused(out: Path, name: str) -> Path:
    return out / f"{name}.refused"
