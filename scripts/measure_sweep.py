"""What a sweep of fixed batch sizes is worth when the run that follows has another seed.

    python scripts/measure_sweep.py [--task digits-mlp ...] [--seeds 5] [--out sweep.jsonl]

`rlbatch bench` compares with the best fixed size of the very same seed: which one that is nobody
can know before, not even after a sweep, for a sweep is made with other random numbers. Here the
size is chosen on other seeds, and its cost is divided by that of the best size of the seed itself.
Printed are the geometric means for a sweep of one seed (what people do) and of all the others.
What the sweep itself costs is not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.fixed_curves import FixedSetting, size_grid
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.signals.record import Array, Coupling

COUPLINGS = ["none", "sqrt", "linear"]
PROFILES = ["cpu", "accelerator-512", "accelerator-4096"]


def main() -> None:
    """Print the ratios, in all and for each coupling and clock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=list(SMALL_TASKS))
    parser.add_argument("--lr-coupling", nargs="+", default=COUPLINGS)
    parser.add_argument("--profile", nargs="+", default=PROFILES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write one JSON object a setting to this file")
    arguments = parser.parse_args()
    cells = list(product(arguments.task, arguments.lr_coupling))
    one = partial(ratios, tuple(arguments.profile), arguments.seeds)
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        rows = [row for part in pool.imap(one, cells) for row in part]
    if arguments.out is not None:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report("all", rows)
    for name in ("lr_coupling", "profile", "task"):
        for value in dict.fromkeys(row[name] for row in rows):
            report(str(value), [row for row in rows if row[name] == value])


def ratios(
    profiles: tuple[str, ...], seeds: int, cell: tuple[str, str]
) -> list[dict[str, str | float]]:
    """Return a row a clock: what sizes chosen on other seeds cost, over the best of the seed."""
    task, coupling = cell
    costs = np.stack([_costs(task, coupling, seed, profiles) for seed in range(seeds)])
    rows: list[dict[str, str | float]] = []
    for i, profile in enumerate(profiles):
        log = np.log(costs[:, i])
        one, others = _chosen_elsewhere(log)
        rows.append(
            {
                "task": task,
                "lr_coupling": coupling,
                "profile": profile,
                "one_seed": float(np.exp(one)),
                "other_seeds": float(np.exp(others)),
                "best_of_all": float(np.exp(log.mean(0).min())),
            }
        )
    return rows


def _costs(task_name: str, coupling: str, seed: int, profiles: tuple[str, ...]) -> Array:
    """Return ratios to the best size, at most the cap, of shape (profiles, sizes)."""
    task = resolve_task(task_name)
    setting = FixedSetting(
        task=task,
        task_id=task_name,
        seed=seed,
        coupling=Coupling(coupling),
        backend=fastest_backend,
    )
    sizes = size_grid(task)
    found = find_references(setting, [resolve_clock(name) for name in profiles], start_sizes=sizes)
    references = [found[name] for name in profiles]
    return np.array([[r.cost_of(size) / r.cost for size in sizes] for r in references])


def _chosen_elsewhere(log: Array) -> tuple[float, float]:
    """Return the mean log ratio of sizes chosen on one other seed, and on all others together.

    Args:
        log: Log ratios of shape (seeds, sizes).
    """
    seeds = len(log)
    pairs = [log[i, log[j].argmin()] for i in range(seeds) for j in range(seeds) if i != j]
    rest = [log[i, np.delete(log, i, axis=0).mean(0).argmin()] for i in range(seeds)]
    return float(np.mean(pairs)), float(np.mean(rest))


def report(name: str, rows: list[dict[str, str | float]]) -> None:
    """Print the geometric means of some rows."""
    means = {
        key: float(np.exp(np.mean([np.log(float(row[key])) for row in rows])))
        for key in ("one_seed", "other_seeds", "best_of_all")
    }
    print(
        f"{name}: {len(rows)} settings, size from a sweep of one other seed "
        f"{means['one_seed']:.3f}, of all other seeds {means['other_seeds']:.3f}, "
        f"best on average over all seeds {means['best_of_all']:.3f} "
        f"(a run that is not reached counts {UNREACHED_RATIO:g})",
        flush=True,
    )


if __name__ == "__main__":
    main()
