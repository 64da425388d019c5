"""Runs that choose among policies, on seeds that nothing was learned from; kept line by line."""

from __future__ import annotations

import functools
import math
import tempfile
import time
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
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts, identity_here, own_task
from rlbatch.agents.own_tasks.plan import VALIDATION_SEED, Plan
from rlbatch.envs.live import Validation as Seen
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling

Key = tuple[str, str, float, int]  # candidate, task, start, number of the seed


@functools.cache
def _policy(name: str, content: bytes | None) -> Policy:
    """Return a policy, from a file's content where the file itself is out of reach."""
    if content is None:
        return resolve_policy(name)
    with tempfile.TemporaryDirectory(prefix="rlbatch-") as folder:
        path = Path(folder) / "policy.safetensors"
        path.write_bytes(content)
        return resolve_policy(str(path))


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
    content: bytes | None
    costs: TaskCosts
    identity: str
    key: Key
    first_seed: int
    smoothed: bool


def _run(work: _Work) -> tuple[float, bool, float]:
    """Return a run's ratio, whether it arrived, and the seconds that it took here."""
    begun = time.monotonic()
    ratio, reached = _outcome(work)
    return ratio, reached, time.monotonic() - begun


def _outcome(work: _Work) -> tuple[float, bool]:
    plan, costs, (_, _, start, number) = work.plan, work.costs, work.key
    clock = plan.clock
    result = controlled_run(
        own_task(costs.name, work.identity),
        _policy(work.policy, work.content),
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
    if work.smoothed and result.reached:
        return smoothed_cost(result.validations, costs.task.target) / costs.reference, True
    return run_ratio(result, costs.reference), result.reached


def smoothed_cost(validations: Sequence[Seen], target: float) -> float:
    """Return the geometric mean of the costs at which a run met its target and some just above it.

    When a run meets one number is in part luck. What it costs to meet several that lie within 15%
    of the target, and within a tenth of the way from the first loss, varies less from seed to seed
    and ranks policies alike.

    Args:
        validations: Of a run that met its target.
        target: The target.
    """
    most = min(0.15 * target, 0.1 * max(validations[0].loss - target, 0.0))
    costs = [
        next(seen.cost for seen in validations if seen.loss <= target + share * most)
        for share in (0.0, 1 / 3, 2 / 3, 1.0)
    ]
    return float(np.exp(np.log(costs).mean()))


class Validation:
    """The results so far, in memory and in a file."""

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[TaskCosts],
        path: Path,
        first_seed: int = VALIDATION_SEED,
        *,
        smoothed: bool = False,
    ) -> None:
        """Read what is there.

        Args:
            plan: Of the training.
            tasks: With the costs of their fixed sizes.
            path: The file.
            first_seed: Of the runs.
            smoothed: Ratios are of `smoothed_cost`, to rank by and for nothing else.
        """
        self._plan, self._tasks, self._path, self._first = plan, tasks, path, first_seed
        self._smoothed = smoothed
        cut_torn_line(path)
        lines: list[Any] = read_lines(path) if path.exists() else []
        self._ratios: dict[Key, float] = {
            (row["candidate"], row["task"], row["start"], row["seed"]): row["ratio"]
            for row in lines
        }
        self._seconds = [row["seconds"] for row in lines if "seconds" in row]

    @property
    def run_seconds(self) -> float:
        """What a run took in the mean, those before a stop included; 0 before there is one."""
        return float(np.mean(self._seconds)) if self._seconds else 0.0

    def keys(self, candidate: str, rounds: Iterable[int]) -> list[Key]:
        """Return the runs of a candidate in these rounds: one from each start, each of a seed.

        From other starts a run of the same seed comes to nearly the same: what differs is the
        first chunk. Seeds of their own tell three times as much.
        """
        starts = self._plan.starts
        return [
            (candidate, costs.name, start, len(starts) * number + place)
            for number in rounds
            for costs in self._tasks
            for place, start in enumerate(starts)
        ]

    def run(
        self,
        candidates: Sequence[Candidate],
        rounds: int,
        executor: Executor,
        on_progress: Callable[[int, int], None],
        *,
        until: float = math.inf,
    ) -> None:
        """Run what is missing of candidates in the first rounds.

        Args:
            candidates: To be compared.
            rounds: Their number.
            executor: Where they run.
            on_progress: Called with the runs that are done and all of them.
            until: When, by `time.monotonic`, no more are begun; by default all are made.
        """
        made = functools.partial(self._item, carried=not executor.shares_files)
        queue = deque(
            (key, made(candidate, key))
            for number in range(rounds)
            for candidate in candidates
            for key in self.keys(candidate.name, [number])
            if key not in self._ratios
        )
        total = len(queue)
        on_progress(0, total)
        found = executor.run(_run, queue, deadline=Deadline(until))
        for done, (key, (ratio, reached, seconds)) in enumerate(found, start=1):
            self._ratios[key] = ratio
            self._seconds.append(seconds)
            names = ("candidate", "task", "start", "seed")
            row = dict(zip(names, key, strict=True))
            row |= {"ratio": ratio, "reached": reached, "seconds": round(seconds, 3)}
            append_line(self._path, row)
            on_progress(done, total)

    def _item(self, candidate: Candidate, key: Key, *, carried: bool) -> _Work:
        costs = next(costs for costs in self._tasks if costs.name == key[1])
        path = Path(candidate.policy)
        content = path.read_bytes() if carried and path.is_file() else None
        return _Work(
            self._plan,
            candidate.policy,
            content,
            costs,
            identity_here(costs.name),
            key,
            self._first,
            self._smoothed,
        )

    def rounds_of(self, candidate: str) -> int:
        """Return how many rounds a candidate was run through."""
        rounds = 0
        while all(key in self._ratios for key in self.keys(candidate, [rounds])):
            rounds += 1
        return rounds

    def score(self, candidate: str, rounds: int) -> float:
        """Return the geometric mean of a candidate's ratios in the first rounds."""
        ratios = [self._ratios[key] for key in self.keys(candidate, range(rounds))]
        return float(np.exp(np.log(ratios).mean()))

    def scores(self, candidates: Iterable[Candidate]) -> dict[str, tuple[float, int]]:
        """Return, by name, score and seeds of the candidates that were run through a round."""
        rounds = {one.name: self.rounds_of(one.name) for one in candidates}
        starts = len(self._plan.starts)
        return {name: (self.score(name, n), n * starts) for name, n in rounds.items() if n}

    def ranked(self, candidates: Iterable[Candidate], rounds: int | None = None) -> list[Candidate]:
        """Return candidates, the best first.

        Args:
            candidates: Those that were run through no whole round are left out; of equal ones the
                first comes first.
            rounds: To rank by; None for all that every one of them was run through.
        """
        begun = [one for one in candidates if self.rounds_of(one.name)]
        if rounds is None:
            rounds = min((self.rounds_of(one.name) for one in begun), default=0)
        return sorted(begun, key=lambda one: self.score(one.name, rounds))

    def best(self, candidates: Iterable[Candidate], rounds: int) -> Candidate:
        """Return the candidate with the least score; of equal ones the first."""
        return min(candidates, key=lambda candidate: self.score(candidate.name, rounds))

    def surest(self, base: Candidate, candidates: Iterable[Candidate], rounds: int) -> Candidate:
        """Return the candidate that is most surely better than a base, or the base itself.

        What counts is the mean of log(ratio / base's ratio) plus twice its standard error, over
        pairs of a seed: the least mean of many is in part luck.
        """
        found, least = base, 0.0
        for candidate in candidates:
            mean, error = self.behind(candidate, base, rounds)
            if mean + 2.0 * error < least:
                found, least = candidate, mean + 2.0 * error
        return found

    def behind(self, candidate: Candidate, other: Candidate, rounds: int) -> tuple[float, float]:
        """Return the mean of log(ratio / the other's ratio) over pairs of a seed, and its error."""
        pairs = zip(
            self.keys(candidate.name, range(rounds)),
            self.keys(other.name, range(rounds)),
            strict=True,
        )
        logs = [np.log(self._ratios[ours] / self._ratios[theirs]) for ours, theirs in pairs]
        return float(np.mean(logs)), float(np.std(logs) / max(len(logs) - 1, 1) ** 0.5)
