"""How the steps to a target depend on the batch size: simulated tasks beside measured ones.

    python scripts/compare_simulator.py --curves DIR [--tasks 1500]

For constant learning rates (coupling `none`), by optimizer: the share of tasks in which each
multiple of the base batch size reaches the target at all, and the median of the steps that it
takes, relative to the base batch size, with the quartiles. A multiple that does not reach it
counts as infinitely many. The simulator's ranges (`rlbatch.envs.simulator.tasks`) were chosen so
that the two agree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from rlbatch.envs.curves import SIZE_SHIFTS, CurveTable
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.envs.task import resolve_task
from rlbatch.signals.record import Array

TARGETS = (1.0, 1.2, 1.5)
SEED = 7
BASE = SIZE_SHIFTS.index(0)
CHUNKS = 140


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=1500)
    arguments = parser.parse_args()
    print("log2(batch size / base):", *(f"{shift:5d}" for shift in SIZE_SHIFTS))
    for name, found in (
        ("measured", measured(arguments.curves)),
        ("simulated", simulated(arguments.tasks)),
    ):
        for kind, steps in zip(("SGD", "Adam"), found, strict=True):
            report(f"{name}, {kind}", steps)


def report(name: str, steps: Array) -> None:
    """Print a line each of shares, medians and quartiles; steps of shape (tasks, sizes)."""
    steps = steps[np.isfinite(steps[:, BASE])]
    with np.errstate(invalid="ignore"):
        ratio = np.log2(steps / steps[:, BASE : BASE + 1])
    tried = ~np.isnan(steps)
    share = np.isfinite(steps).sum(0) / tried.sum(0)
    print(f"{name}: {len(steps)} tasks")
    print("  reached                ", *(f"{value:5.2f}" for value in share))
    for quantile in (0.25, 0.5, 0.75):
        # Sorted and picked: an infinite neighbour would make an interpolated value undefined.
        values = [
            np.quantile(column[~np.isnan(column)], quantile, method="lower") for column in ratio.T
        ]
        print(f"  log2 of steps, {quantile:4.2f}    ", *(f"{value:5.2f}" for value in values))


def measured(folder: Path) -> tuple[Array, Array]:
    """Return the steps of real tasks, SGD and Adam; NaN where a size was not run."""
    rows: dict[bool, list[list[float]]] = {False: [], True: []}
    for path in sorted(folder.glob("*.npz")):
        table = CurveTable.load(path)
        task = resolve_task(table.task)
        optimizer = task.optimizer(task.model().parameters())
        adam = not isinstance(optimizer, torch.optim.SGD)
        for factor in TARGETS:
            places = [table.row(shift, 0) for shift in SIZE_SHIFTS]
            steps = [
                np.nan if place is None else table.steps_to(place, factor * task.target)
                for place in places
            ]
            rows[adam].append(steps)
    return np.array(rows[False]), np.array(rows[True])


def simulated(count: int) -> tuple[Array, Array]:
    """Return the steps of simulated tasks without coupling, SGD and Adam."""
    pool = make_pool(count, SEED)
    plain = (pool.tasks.coupling_exponent == 0) & (pool.tasks.adascale == 0)
    chosen = np.flatnonzero(plain)
    tasks, target = pool.tasks.take(chosen), pool.target_loss[chosen]
    columns: list[Array] = []
    for shift in SIZE_SHIFTS:
        size = tasks.base_batch_size * 2.0**shift
        runs = QuadraticRuns(tasks, np.random.default_rng(0), exact=True)
        steps = np.full(len(tasks), np.inf)
        for _ in range(CHUNKS):
            outcome = runs.advance(np.maximum(size, 1.0))
            hit = np.isinf(steps) & (outcome.validation_after <= target)
            steps[hit] = runs.steps[hit]
        columns.append(np.where((size >= 1.0) & (size <= tasks.max_batch_size), steps, np.nan))
    steps = np.stack(columns, axis=1)
    return steps[tasks.adaptive == 0], steps[tasks.adaptive > 0]


if __name__ == "__main__":
    main()
