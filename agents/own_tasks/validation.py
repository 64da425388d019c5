"""Runs that choose among policies, on seeds that nothing was learned from; kept line by line."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlbatch.agents.evaluate.curve_store import append_line, cut_torn_line, read_lines
from rlbatch.agents.evaluate.rows import run_ratio
from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.agents.executor import Deadline, Executor
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts, cached_task
from rlbatch.agents.own_tasks.plan import VALIDATION_SEED, Plan
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling

Key = tuple[str, str, float, int]  # candidate, task, start, number of the seed
cached_policy = functools.cache(resolve_policy)


@dataclass(frozen=True)
class Candidate:
    """A policy that might be kept.

    Attributes:
        name: How tables call it.
        policy: As `rlbatch.load_policy` takes it.
        kind: `learned`, `schedule`, `shipped`, `size` or `rule`.
        file: It is a policy file, and can be kept.
    """

    name: str
    policy: str
    kind: str
    file: bool = True


class _Work(NamedTuple):
    plan: Plan
    policy: str
    costs: TaskCosts
    key: Key
    first_seed: int


def _run(work: _Work) -> tuple[float, bool]:
    """Return a run's ratio, and whether it arrived."""
    plan, costs, (_, _, start, number) = work.plan, work.costs, work.key
    clock = plan.clock
    result = controlled_run(
        cached_task(costs.name),
        cached_policy(work.policy),
        seed=work.first_seed + number,
        coupling=Coupling(plan.coupling),
        profile=clock.profile,
        objective=Objective(costs.task.target, None, clock.weights),
        start_factor=start,
        max_cost=UNREACHED_RATIO * costs.reference,
        planned_steps=costs.planned,
        curve_known=clock.told,
        backend=fastest_backend,
    )
    return run_ratio(result, costs.reference), result.reached


class Validation:
    """The results so far, in memory and in a file."""

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[TaskCosts],
        path: Path,
        first_seed: int = VALIDATION_SEED,
    ) -> None:
        """Read what is there.

        Args:
            plan: Of the training.
            tasks: With the costs of their fixed sizes.
            path: The file.
            first_seed: Of the runs.
        """
        self._plan, self._tasks, self._path, self._first = plan, tasks, path, first_seed
        cut_torn_line(path)
        lines: list[Any] = read_lines(path) if path.exists() else []
        self._ratios: dict[Key, float] = {
            (row["candidate"], row["task"], row["start"], row["seed"]): row["ratio"]
            for row in lines
        }

    def keys(self, candidate: str, seeds: Iterable[int]) -> list[Key]:
        """Return the runs of a candidate with these seeds."""
        return [
            (candidate, costs.name, start, seed)
            for seed in seeds
            for costs in self._tasks
            for start in self._plan.starts
        ]

    def run(
        self,
        candidates: Sequence[Candidate],
        seeds: int,
        executor: Executor,
        on_progress: Callable[[int, int], None],
        *,
        until: float = math.inf,
    ) -> None:
        """Run what is missing of candidates on the first seeds.

        Args:
            candidates: To be compared.
            seeds: Their number.
            executor: Where they run.
            on_progress: Called with the runs that are done and all of them.
            until: When, by `time.monotonic`, no more are begun; by default all are made.
        """
        by_name = {costs.name: costs for costs in self._tasks}
        policies = {candidate.name: candidate.policy for candidate in candidates}
        queue = deque(
            (key, _Work(self._plan, policies[key[0]], by_name[key[1]], key, self._first))
            for seed in range(seeds)
            for candidate in candidates
            for key in self.keys(candidate.name, [seed])
            if key not in self._ratios
        )
        total = len(queue)
        on_progress(0, total)
        found = executor.run(_run, queue, deadline=Deadline(until))
        for done, (key, (ratio, reached)) in enumerate(found, start=1):
            self._ratios[key] = ratio
            names = ("candidate", "task", "start", "seed")
            row = dict(zip(names, key, strict=True))
            append_line(self._path, {**row, "ratio": ratio, "reached": reached})
            on_progress(done, total)

    def seeds_of(self, candidate: str) -> int:
        """Return with how many seeds a candidate was run in full."""
        seeds = 0
        while all(key in self._ratios for key in self.keys(candidate, [seeds])):
            seeds += 1
        return seeds

    def score(self, candidate: str, seeds: int) -> float:
        """Return the geometric mean of a candidate's ratios on the first seeds."""
        ratios = [self._ratios[key] for key in self.keys(candidate, range(seeds))]
        return float(np.exp(np.log(ratios).mean()))

    def best(self, candidates: Iterable[Candidate], seeds: int) -> Candidate:
        """Return the candidate with the least score; of equal ones the first."""
        return min(candidates, key=lambda candidate: self.score(candidate.name, seeds))
