"""What a sweep of fixed batch sizes is worth when the run that follows has another seed.

    python scripts/measure_sweep.py [--task digits-mlp ...] [--seeds 5] [--out sweep.jsonl]
    python scripts/measure_sweep.py --task field:wide-table field:autoencoder --lr-coupling sqrt \
        --seeds 4 --widest 16 --references references --results out/target

`rlbatch bench` compares with the best fixed size of the very same seed: which one that is nobody
can know before, not even after a sweep, for a sweep is made with other random numbers. Here the
size is chosen on other seeds, and its cost is divided by that of the best size of the seed itself.
Printed are the geometric means for a sweep of one seed (what people do) and of all the others.
What the sweep itself costs is not counted.

With the results of a benchmark of the same tasks and seeds (`--results`) it also prints what each
policy costs over the size that a sweep of all the other seeds finds, in runs of the same seed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import size_grid
from rlbatch.agents.evaluate.planned_runs import fixed_setting
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.evaluate.rows import Row, read_results
from rlbatch.agents.evaluate.settings import BenchSettings, Group
from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.signals.record import Array

COUPLINGS = ["none", "sqrt", "linear"]
PROFILES = ["cpu", "accelerator-512", "accelerator-4096"]


@dataclass(frozen=True)
class Sweep:
    """Which fixed sizes are run.

    Attributes:
        profiles: Clocks.
        seeds: Of each size.
        widest: A size is at most so many times the task's, and at least the task's over that.
        references: Folder where learning curves are kept; None keeps none.
    """

    profiles: tuple[str, ...]
    seeds: int
    widest: float = math.inf
    references: Path | None = None


def main() -> None:
    """Print the ratios, in all and for each coupling and clock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=list(SMALL_TASKS))
    parser.add_argument("--lr-coupling", nargs="+", default=COUPLINGS)
    parser.add_argument("--profile", nargs="+", default=PROFILES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--widest", type=float, default=math.inf, help="multiple of the task's size"
    )
    parser.add_argument("--references", type=Path, help="folder where learning curves are kept")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="of benchmarks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write one JSON object a setting to this file")
    arguments = parser.parse_args()
    cells = list(product(arguments.task, arguments.lr_coupling))
    sweep = Sweep(tuple(arguments.profile), arguments.seeds, arguments.widest, arguments.references)
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        rows = [row for part in pool.imap(partial(ratios, sweep), cells) for row in part]
    if arguments.out is not None:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report("all", rows)
    for name in ("lr_coupling", "profile", "task"):
        for value in dict.fromkeys(row[name] for row in rows):
            report(str(value), [row for row in rows if row[name] == value])
    compare(rows, [row for folder in arguments.results for row in read_results(folder)])


def ratios(sweep: Sweep, cell: tuple[str, str]) -> list[Row]:
    """Return a row a clock: what sizes chosen on other seeds cost, over the best of the seed."""
    task, coupling = cell
    found = [_costs(sweep, Group(task, coupling, seed)) for seed in range(sweep.seeds)]
    sizes, costs = found[0][0], np.stack([costs for _, costs in found])
    rows: list[Row] = []
    for i, profile in enumerate(sweep.profiles):
        log = np.log(costs[:, i])
        one, others = _chosen_elsewhere(log)
        rows.append(
            {
                "task": task,
                "lr_coupling": coupling,
                "profile": profile,
                "one_seed": float(np.exp(one)),
                "other_seeds": float(np.exp(others.mean())),
                "best_of_all": float(np.exp(log.mean(0).min())),
                "best_size": sizes[int(log.mean(0).argmin())],
                "of_seeds": [float(ratio) for ratio in np.exp(others)],
            }
        )
    return rows


def _costs(sweep: Sweep, group: Group) -> tuple[list[int], Array]:
    """Return sizes, and ratios to the best one, at most the cap, of shape (profiles, sizes)."""
    task = resolve_task(group.task)
    settings = BenchSettings((group.task,), ("fixed",), (group.coupling,), sweep.profiles)
    setting = fixed_setting(settings, group, task)
    sizes = sorted(
        size
        for size in size_grid(task)
        if 1 / sweep.widest <= size / task.batch_size <= sweep.widest
    )
    store = CurveStore()
    if sweep.references is not None:
        path = curve_path(sweep.references, setting.task_id, group.coupling, group.seed)
        store = open_curves(path)
    clocks = [resolve_clock(name) for name in sweep.profiles]
    found = find_references(setting, clocks, start_sizes=sizes, store=store)
    references = [found[name] for name in sweep.profiles]
    return sizes, np.array([[r.cost_of(size) / r.cost for size in sizes] for r in references])


def _chosen_elsewhere(log: Array) -> tuple[float, Array]:
    """Return the mean log ratio of sizes chosen on one other seed, and each seed's on all others.

    Args:
        log: Log ratios of shape (seeds, sizes).
    """
    seeds = len(log)
    pairs = [log[i, log[j].argmin()] for i in range(seeds) for j in range(seeds) if i != j]
    rest = [log[i, np.delete(log, i, axis=0).mean(0).argmin()] for i in range(seeds)]
    return float(np.mean(pairs)), np.array(rest)


def compare(rows: list[Row], results: list[Row]) -> None:
    """Print what each policy costs over the sizes that the other seeds' sweep finds."""
    sizes = {(row["task"], row["lr_coupling"], row["profile"]): row["of_seeds"] for row in rows}
    logs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in results:
        clock = str(row["profile"]).removesuffix(":untold")
        of_seeds = sizes.get((row["task"], row["lr_coupling"], clock), [])
        if row["seed"] < len(of_seeds):
            ratio = math.log(row["ratio"] / of_seeds[row["seed"]])
            logs[row["policy"], row["profile"]].append(ratio)
    for (policy, profile), values in sorted(logs.items()):
        print(
            f"{policy}, {profile}: {len(values)} runs, {math.exp(np.mean(values)):.3f} of the size "
            "from a sweep of all other seeds",
            flush=True,
        )


def report(name: str, rows: list[Row]) -> None:
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
