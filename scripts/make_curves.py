"""Compute the fixed-batch learning curves that training on real runs needs, on all cores.

    python scripts/make_curves.py --out DIR [--task NAME ...] [--random N]

Existing tables are kept, so that a stopped run can be continued.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.curves import compute_table
from rlbatch.envs.random_fit import fitted_table
from rlbatch.envs.tasks.random_job import RandomJob
from rlbatch.envs.threads import use_one_thread
from rlbatch.files import replacing

RANDOM_TASKS = {"random": 2000, "random-long": 600, "random-transformer": 40}
"""How many of each kind a policy is trained on; those behind are for evaluation."""

SEEDS = 8
"""Runs of each point of a built-in task: where the best size differs from run to run, two of them
tell a policy, for good, of a best size that is not the best in others."""

FIRST_SEED = 10_000
"""Benchmarks begin at zero: what they compare with is not to be known from training."""

Work = tuple[Path, str | RandomJob, int]  # table, task, seeds


def main() -> None:
    """Make one table a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=SMALL_TASKS)
    for kind, count in RANDOM_TASKS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    make_curves(
        arguments.out,
        arguments.task,
        {kind: getattr(arguments, kind.replace("-", "_")) for kind in RANDOM_TASKS},
        arguments.seeds,
        jobs=arguments.jobs,
    )


def make_curves(
    out: Path,
    tasks: Sequence[str],
    random_tasks: dict[str, int],
    seeds: int = SEEDS,
    *,
    jobs: int = 1,
) -> None:
    """Make the tables that are missing.

    Args:
        out: Folder; made if it does not exist.
        tasks: Built-in tasks.
        random_tasks: How many random tasks of each kind are made, too.
        seeds: Runs of each point, of built-in tasks.
        jobs: Processes.
    """
    out.mkdir(parents=True, exist_ok=True)
    work: list[Work] = [(out / f"{name}.npz", name, seeds) for name in tasks]
    for kind, count in random_tasks.items():
        jobs_of_kind = (RandomJob(kind, number) for number in range(count))
        work += [(out / f"{kind}-{job.number:04d}.npz", job, 1) for job in jobs_of_kind]
    work = [item for item in work if not item[0].exists() and not _refused(item[0]).exists()]
    with multiprocessing.get_context("spawn").Pool(jobs, use_one_thread) as pool:
        for line in pool.imap_unordered(_make, work):
            print(line, flush=True)


def _make(item: Work) -> str:
    path, task, seeds = item
    begun = time.perf_counter()
    table = (
        compute_table(task, range(FIRST_SEED, FIRST_SEED + seeds))
        if isinstance(task, str)
        else fitted_table(task, seeds)
    )
    seconds = time.perf_counter() - begun
    if table is None:
        _refused(path).touch()  # so that it is not tried again
        return f"{path.stem}: nothing to learn, {seconds:.0f} s"
    with replacing(path) as temporary:
        table.save(temporary)
    return f"{path.stem}: {len(table.points)} points, {seconds:.0f} s"


def _refused(path: Path) -> Path:
    return path.with_suffix(".refused")


if __name__ == "__main__":
    main()
