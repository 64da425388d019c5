"""Runs that choose among policies, on seeds that nothing was learned from; kept line by line."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.curve_store import append_line, cut_torn_line, read_lines
from rlbatch.agents.executor import Deadline, Executor
from rlbatch.agents.own_tasks.compared_run import KEY, Key, RunOutcome, Work, run
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts, identity_here
from rlbatch.agents.own_tasks.plan import VALIDATION_SEED, Plan


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


class Validation:
    """The results so far, in memory and in a file.

    Candidates are compared by smoothed costs. What is shown are ratios at the target itself.
    """

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
        self._outcomes: dict[Key, RunOutcome] = {
            tuple(row[name] for name in KEY): RunOutcome(
                row["ratio"], row.get("smoothed", row["ratio"]), row["reached"]
            )
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
            if key not in self._outcomes
        )
        total = len(queue)
        on_progress(0, total)
        found = executor.run(run, queue, deadline=Deadline(until))
        for done, (key, (outcome, seconds)) in enumerate(found, start=1):
            self._outcomes[key] = outcome
            self._seconds.append(seconds)
            row = dict(zip(KEY, key, strict=True))
            row |= {**outcome._asdict(), "seconds": round(seconds, 3)}
            append_line(self._path, row)
            on_progress(done, total)

    def _item(self, candidate: Candidate, key: Key, *, carried: bool) -> Work:
        costs = next(costs for costs in self._tasks if costs.name == key[1])
        path = Path(candidate.policy)
        content = path.read_bytes() if carried and path.is_file() else None
        return Work(
            self._plan,
            candidate.policy,
            content,
            costs,
            identity_here(costs.name),
            key,
            self._first,
        )

    def rounds_of(self, candidate: str) -> int:
        """Return how many rounds a candidate was run through."""
        rounds = 0
        while all(key in self._outcomes for key in self.keys(candidate, [rounds])):
            rounds += 1
        return rounds

    def score(self, candidate: str, rounds: int) -> float:
        """Return the geometric mean of a candidate's ratios in the first rounds."""
        return self._mean(candidate, rounds, lambda outcome: outcome.ratio)

    def _rank(self, candidate: str, rounds: int) -> float:
        """Return what a candidate is ranked by."""
        return self._mean(candidate, rounds, lambda outcome: outcome.smoothed)

    def _mean(self, candidate: str, rounds: int, of: Callable[[RunOutcome], float]) -> float:
        ratios = [of(self._outcomes[key]) for key in self.keys(candidate, range(rounds))]
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
        return sorted(begun, key=lambda one: self._rank(one.name, rounds))

    def best(self, candidates: Iterable[Candidate], rounds: int) -> Candidate:
        """Return the candidate that ranks first; of equal ones the first."""
        return min(candidates, key=lambda candidate: self._rank(candidate.name, rounds))

    def surest(self, base: Candidate, candidates: Iterable[Candidate], rounds: int) -> Candidate:
        """Return the candidate that is most surely better than a base, or the base itself.

        What counts is the mean of log(cost / base's cost) plus twice its standard error, over
        pairs of a seed: the least mean of many is in part luck.
        """
        found, least = base, 0.0
        for candidate in candidates:
            mean, error = self.behind(candidate, base, rounds)
            if mean + 2.0 * error < least:
                found, least = candidate, mean + 2.0 * error
        return found

    def behind(self, candidate: Candidate, other: Candidate, rounds: int) -> tuple[float, float]:
        """Return the mean of log(cost / the other's cost) over pairs of a seed, and its error."""
        pairs = zip(
            self.keys(candidate.name, range(rounds)),
            self.keys(other.name, range(rounds)),
            strict=True,
        )
        costs = [[self._outcomes[key].smoothed for key in pair] for pair in pairs]
        logs = np.log([ours / theirs for ours, theirs in costs])
        return float(np.mean(logs)), float(np.std(logs) / max(len(logs) - 1, 1) ** 0.5)
