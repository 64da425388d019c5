"""Compute the fixed-batch learning curves that training on real runs needs, on all cores.

    python scripts/make_curves.py --out DIR [--task NAME ...] [--random N]

Existing tables are kept, so that a stopped run can be continued.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import torch

from rlbatch.envs.curves import compute_table
from rlbatch.envs.random_fit import fitted_table
from rlbatch.envs.task import task_names

RANDOM_TASKS = 460  # the last of them are left for evaluation
HELD_OUT = 40


def main() -> None:
    """Make one table a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=task_names())
    parser.add_argument("--random", type=int, default=RANDOM_TASKS - HELD_OUT, metavar="N")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    make_curves(
        arguments.out, arguments.task, arguments.random, arguments.seeds, jobs=arguments.jobs
    )


def make_curves(
    out: Path, tasks: list[str], random_tasks: int, seeds: int = 2, *, jobs: int = 1
) -> None:
    """Make the tables that are missing.

    Args:
        out: Folder; made if it does not exist.
        tasks: Built-in tasks.
        random_tasks: Random tasks 0 to this number are made, too.
        seeds: Runs of each point, of built-in tasks.
        jobs: Processes.
    """
    out.mkdir(parents=True, exist_ok=True)
    work: list[tuple[Path, str | int, int]] = [(out / f"{name}.npz", name, seeds) for name in tasks]
    work += [(out / f"random-{n:04d}.npz", n, 1) for n in range(random_tasks)]
    work = [item for item in work if not item[0].exists() and not _refused(item[0]).exists()]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for line in pool.imap_unordered(_make, work):
            print(line, flush=True)


def _make(item: tuple[Path, str | int, int]) -> str:
    torch.set_num_threads(1)
    path, task, seeds = item
    begun = time.perf_counter()
    table = compute_table(task, seeds) if isinstance(task, str) else fitted_table(task, seeds)
    seconds = time.perf_counter() - begun
    if table is None:
        _refused(path).touch()  # so that it is not tried again
        return f"{path.stem}: nothing to learn, {seconds:.0f} s"
    temporary = path.with_suffix(".tmp.npz")
    table.save(temporary)
    os.replace(temporary, path)
    return f"{path.stem}: {len(table.points)} points, {seconds:.0f} s"


def _refused(path: Path) -> Path:
    return path.with_suffix(".refused")


if __name__ == "__main__":
    main()
