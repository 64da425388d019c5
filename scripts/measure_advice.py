"""How good `rlbatch advise` is: what its sizes cost beside the best ones that a sweep finds.

    python scripts/measure_advice.py --out out/advice [--task ...] [--seeds 3] [--jobs 2]

For every task and clock each fixed size is run to the target with several seeds; the truth is the
size with the least mean cost. The advice is given from one short probe with another seed. Regret is
the mean cost of a size over that of the best, less one; a size that does not arrive within four
times the best counts four. Beside it stand the regrets of leaving the size as it is, and of a sweep
with one seed (which of course costs many runs). Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import FixedSetting, size_grid
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.search.advice import advise
from rlbatch.agents.search.probe import probe
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task, task_names
from rlbatch.envs.threads import use_one_thread
from rlbatch.signals.record import Coupling

PROFILES = ["cpu", "accelerator-512", "accelerator-4096"]
PROBE_SEED = 1000


def main() -> None:
    """Print the table, and what it says on average."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=task_names())
    parser.add_argument("--profile", nargs="+", default=PROFILES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the fixed runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    one = partial(
        rows_of_task,
        profiles=arguments.profile,
        seeds=arguments.seeds,
        out=arguments.out,
    )
    if arguments.jobs == 1:
        use_one_thread()
        parts = map(one, arguments.task)
        rows = [row for part in parts for row in part]
    else:
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
            rows = [row for part in pool.imap(one, arguments.task) for row in part]
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(rows)


def sizes_of(task: Task) -> list[int]:
    """Return the sizes of the truth: a quarter of the task's to sixteen times as much."""
    return sorted(
        size for size in size_grid(task) if task.batch_size / 4 <= size <= 16 * task.batch_size
    )


def costs_of_sizes(
    name: str, seed: int, profiles: Sequence[str], sizes: Sequence[int], out: Path
) -> dict[str, dict[int, float]]:
    """Return the cost of each size on each clock, at most four times the best."""
    task = resolve_task(name)
    store = CurveStore(out / f"{name.replace('/', '_').replace(':', '_')}-sqrt-{seed}.jsonl")
    setting = FixedSetting(task, name, seed, Coupling.SQRT, backend=fastest_backend)
    found = find_references(
        setting, [resolve_clock(p) for p in profiles], start_sizes=sizes, store=store
    )
    return {
        profile: {size: reference.cost_of(size) for size in sizes}
        for profile, reference in found.items()
    }


def rows_of_task(name: str, profiles: Sequence[str], seeds: int, out: Path) -> list[dict[str, Any]]:
    """Return a row a clock: truth, advice and regrets."""
    task = resolve_task(name)
    measured = probe(task, seed=PROBE_SEED)
    advised = {p: advise(task, measured, resolve_clock(p)).batch_size for p in profiles}
    sizes = sorted({*sizes_of(task), *advised.values()})
    by_seed = [costs_of_sizes(name, seed, profiles, sizes, out) for seed in range(seeds)]
    print(f"{name}: known", flush=True)
    rows: list[dict[str, Any]] = []
    for profile in profiles:
        logs = np.log([[costs[profile][size] for size in sizes] for costs in by_seed])
        mean = logs.mean(axis=0)
        regret = dict(zip(sizes, np.expm1(mean - mean.min()).tolist(), strict=True))
        rows.append(
            {
                "task": name,
                "profile": profile,
                "best": sizes[int(np.argmin(mean))],
                "default": task.batch_size,
                "advised": advised[profile],
                "regret": regret[advised[profile]],
                "regret_default": regret[task.batch_size],
                "regret_sweep": float(np.mean([regret[sizes[int(np.argmin(x))]] for x in logs])),
                "probe_seconds": measured.seconds,
            }
        )
    return rows


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows and their means."""
    print("| task | clock | best | advised | regret | as it is | sweep of one seed |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['task']} | {row['profile']} | {row['best']} | {row['advised']} | "
            f"{row['regret']:.0%} | {row['regret_default']:.0%} | {row['regret_sweep']:.0%} |"
        )
    keys = ("regret", "regret_default", "regret_sweep")
    means = [float(np.mean([row[key] for row in rows])) for key in keys]
    print(f"| mean | | | | {means[0]:.1%} | {means[1]:.1%} | {means[2]:.1%} |")
    longest = max(row["probe_seconds"] for row in rows)
    print(f"\nThe longest probe took {longest:.1f} s.")


if __name__ == "__main__":
    main()
