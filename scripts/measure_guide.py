"""What the runs of a benchmark cost when the best fixed batch size is known from the start.

    python scripts/measure_guide.py BENCH_DIR [--policy default] [--measured] [--jobs 2]

Takes the real runs of one policy in a folder of `rlbatch bench` (targets, on computed clocks) and
makes each again with a guide that is told `reference_batch_size`, the best fixed size in
hindsight, and goes there after the first chunk. What it costs above 1 is starting elsewhere and
luck; a policy that settles on one size cannot do better but by luck. With --measured it has the
gradient noise measured as often as the policy does, and pays for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.rows import Row, read_results, run_ratio
from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.agents.evaluate.summary import compare, summarize, summarize_by
from rlbatch.agents.rules.fixed import Fixed
from rlbatch.envs.objectives import UNREACHED_RATIO, Cadence, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.base import noise_rate_of
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling


def main() -> None:
    """Print the ratios of the policy and of the guide, in all and by task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--policy", default="default", help="whose runs are made again")
    parser.add_argument("--measured", action="store_true", help="measure gradient noise, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    cadence = Cadence(**json.loads((arguments.bench / "bench.json").read_text())["cadence"])
    rows = [row for row in read_results(arguments.bench) if row["policy"] == arguments.policy]
    if not rows:
        parser.error(f"{arguments.bench} holds no runs of {arguments.policy!r}")
    noise_rate = noise_rate_of(resolve_policy(arguments.policy)) if arguments.measured else 0.0
    work = [(row, cadence, noise_rate) for row in rows]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        rows += pool.starmap(guided, work, chunksize=1)
    report("all", rows)
    for name in ("task", "lr_coupling", "profile", "start_batch_size"):
        for value in summarize_by(rows, name):
            report(str(value), [row for row in rows if row[name] == value])
    for pair in compare(rows):
        print(f"cost of {pair.first} over {pair.second}: {pair.ratio}")


@dataclass(frozen=True)
class Guide(Fixed):
    """Goes to a size at once, and has the gradient noise measured."""

    needs_gradient_noise = True
    noise_rate: float = 0.0


def guided(row: Row, cadence: Cadence, noise_rate: float) -> Row:
    """Return a result's twin under the guide."""
    task, clock = resolve_task(row["task"]), resolve_clock(row["profile"])
    result = controlled_run(
        task,
        Guide(row["reference_batch_size"], noise_rate),
        seed=row["seed"],
        coupling=Coupling(row["lr_coupling"]),
        profile=clock.profile,
        objective=Objective(task.target, None, clock.weights),
        start_factor=row["start_batch_size"] / task.batch_size,
        cadence=cadence,
        max_cost=UNREACHED_RATIO * row["reference_cost"],
        backend=fastest_backend,
    )
    return {
        **row,
        "policy": "guide",
        "reached": result.reached,
        "ratio": run_ratio(result, row["reference_cost"]),
    }


def report(name: str, rows: list[Any]) -> None:
    """Print a line: the ratio, the share reached and the worst run of both."""
    parts = (f"{s.policy} {s.ratio}, {s.reach_rate:.1%}, {s.worst:.2f}" for s in summarize(rows))
    print(f"{name}: " + "; ".join(parts), flush=True)


if __name__ == "__main__":
    main()
