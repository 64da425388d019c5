"""What the controller takes on this machine's own clock, beside staying at the first size.

    python scripts/measure_wall_clock.py --task field:ratings field:denoiser --out wall.jsonl

The two runs of a pair take turns in one process, chunk by chunk: next is the one that has spent
less. So what else the machine does disturbs both alike, and their ratio means something where
seconds by themselves do not. Deciding is charged to the run that decides. A run is given up at four
times what the other took to the target, or after four times the samples that it was planned for. A
file that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.run import start_size
from rlbatch.control.build import fallback_for
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.task import Task, resolve_task, smallest_batch_size
from rlbatch.envs.tasks.field import PREFIX, field_job
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling, Signals

STAYING = "fixed"
LONGEST = 4  # times the planned samples


class Turns:
    """A run on the wall clock that is advanced a chunk at a time."""

    def __init__(
        self, task: Task, policy: str, start: float, seed: int, planned: int | None
    ) -> None:
        resolved = resolve_policy(policy)
        self._decider = DecisionEngine(resolved, EngineConfig(fallback=fallback_for(resolved)))
        first = start_size(task, start)
        self.run = LiveRun(
            task,
            seed=seed,
            coupling=Coupling.SQRT,
            profile=None,
            objective=Objective(task.target),
            start_batch_size=first,
            min_batch_size=smallest_batch_size(task, first),
            noise_rate=self._decider.noise_rate,
            planned_steps=planned,
            plan_known=task.scheduler is not None,
        )
        self.sizes = [first]
        self._most = math.inf if planned is None else LONGEST * planned * task.batch_size
        self._seen: Signals | None = None

    @property
    def over(self) -> bool:
        """Nothing is to be expected any more."""
        return self.run.finished or self.run.samples_seen > self._most

    def advance(self) -> None:
        """Decide, unless nothing was seen yet, and train a chunk."""
        run = self.run
        if self._seen is not None and not run.released:
            asked = time.perf_counter()
            decision = self._decider.decide(self._seen, run.batch_size)
            run.cost += time.perf_counter() - asked
            self.sizes.append((decision.held() if run.held else decision).batch_size)
        self._seen = run.advance(self.sizes[-1])


def race(task: Task, policy: str, start: float, seed: int, planned: int | None) -> dict[str, Any]:
    """Return what both runs of a pair took."""
    ours, staying = (Turns(task, name, start, seed, planned) for name in (policy, STAYING))
    both, limit, arrived = (ours, staying), math.inf, list[float]()
    while True:
        going = [one for one in both if not one.over and one.run.cost < limit]
        if not going:
            break
        min(going, key=lambda one: one.run.cost).advance()
        arrived = [one.run.cost for one in both if one.run.reached]
        limit = min((UNREACHED_RATIO * cost for cost in arrived), default=math.inf)
    costs = [one.run.cost if one.run.reached or not arrived else limit for one in both]
    return {
        "cost": costs[0],
        "staying_cost": costs[1],
        "ratio": costs[0] / costs[1] if arrived else 1.0,
        "reached": ours.run.reached,
        "staying_reached": staying.run.reached,
        "steps": ours.run.steps,
        "staying_steps": staying.run.steps,
        "sizes": [size for size, _ in groupby(ours.sizes)],
    }


def planned_length(name: str, task: Task) -> int | None:
    """Return the steps that a job's or a task's user gave it; None without a schedule."""
    return field_job(name).planned_steps() if name.startswith(PREFIX) else task.planned_steps()


def measure(
    tasks: Sequence[str], policy: str, starts: Sequence[float], seeds: int, out: Path
) -> None:
    """Append a line for each pair that the file does not have, and print it."""
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["task"], row["start"], row["seed"]) for row in known}
    for name in tasks:
        task = resolve_task(name)
        for start in starts:
            for seed in range(seeds):
                if (name, start, seed) in done:
                    continue
                found = race(task, policy, start, seed, planned_length(name, task))
                line = json.dumps({"task": name, "start": start, "seed": seed, **found})
                print(line, flush=True)
                with out.open("a") as file:
                    file.write(line + "\n")


def main() -> None:
    """Measure, and print the geometric mean of each start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", required=True)
    parser.add_argument("--policy", default="default")
    parser.add_argument("--start", nargs="+", type=float, default=[0.125, 1.0, 8.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    use_one_thread()
    given = (arguments.task, arguments.policy, arguments.start, arguments.seeds, arguments.out)
    measure(*given)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    for start in arguments.start:
        logs = [math.log(row["ratio"]) for row in rows if row["start"] == start]
        mean = math.exp(sum(logs) / len(logs))
        print(f"start {start:g}: {mean:.3f} of the time of staying ({len(logs)} pairs)")


if __name__ == "__main__":
    main()
