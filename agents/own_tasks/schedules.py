"""A search for a good schedule of sizes, by races in which all candidates share their seeds.

Three numbers are few enough to be found with some hundred runs, where a network takes more. A race
halves its candidates (Li et al. 2018, "Hyperband", section 3); each further one is among the
neighbours of the best so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlbatch.agents.executor import Executor
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts
from rlbatch.agents.own_tasks.notes import read_note, write_note
from rlbatch.agents.own_tasks.plan import TRAINING_SEED, Plan
from rlbatch.agents.own_tasks.rule_networks import Schedule, schedule_policy
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import save_policy

_SLOPES = ((0.0, 0.0), (-1.0, 0.0), (-0.5, 0.0), (0.0, 0.125), (0.0, 0.25), (0.0, 0.5))
_LEVELS = (1, 2, 4, 8)  # rounds after which the worse half is left out
_KEPT = 2
_FEWEST = 4  # candidates of a race
_FOUND_FILE = "found.json"


@dataclass(frozen=True)
class ScheduleSearch:
    """What a search works with.

    Attributes:
        plan: Of the training.
        tasks: With the costs of their fixed sizes.
        actions: Changes of log2(batch size).
        card: Of the policies.
        folder: Of their files.
    """

    plan: Plan
    tasks: Sequence[TaskCosts]
    actions: Sequence[float]
    card: PolicyCard
    folder: Path

    def run(
        self,
        best_shifts: Sequence[int],
        executor: Executor,
        on_progress: Callable[[int, int], None],
        until: float,
        run_seconds: float = 0.0,
    ) -> list[Candidate]:
        """Return the best schedules that were found in the time, two at most, the best first.

        A search is made once; after that its result is there at once.

        Args:
            best_shifts: log2 of the best fixed sizes over the task's, the best first; they are no
                schedules.
            executor: Where they run.
            on_progress: Called with the runs that are done and all of them, in each part of a race.
            until: When to stop, by `time.monotonic`.
            run_seconds: Of one run, divided by the runs side by side. Where they are long, fewer
                are tried: half of the time is for comparing the better ones again.
        """
        known = self._known()
        if known is not None:
            return known
        path = self.folder / "runs.jsonl"
        found = Validation(self.plan, self.tasks, path, TRAINING_SEED)
        race = partial(self._race, found, executor, on_progress, until)
        end = self._end_steps()
        fresh = [
            Schedule(best_shifts[0] + more, *slopes, end)
            for more in (0, 1, -1, 2)
            for slopes in _SLOPES
        ]
        fresh = self._fitting(fresh, until, run_seconds)
        tried, best = set(fresh), list[Schedule]()
        while fresh:
            best = race(best, fresh)
            if time.monotonic() >= until:
                break
            fresh = [one for one in _neighbours(best[0]) if one not in tried]
            fresh = self._fitting(fresh, until, run_seconds)
            tried |= set(fresh)
        sizes = [Schedule(shift, end_steps=end) for shift in best_shifts]
        result = [one for one in best if one not in sizes]
        write_note(self.folder / _FOUND_FILE, [asdict(one) for one in result])
        return [self._candidate(one) for one in result]

    def _fitting(self, fresh: list[Schedule], until: float, run_seconds: float) -> list[Schedule]:
        """Return the first of some schedules: as many as half of the time left can try."""
        each = run_seconds * len(self.plan.starts) * len(self.plan.tasks)
        if each <= 0.0:
            return fresh
        return fresh[: max(int(0.5 * (until - time.monotonic()) / each), _FEWEST)]

    def _known(self) -> list[Candidate] | None:
        """Return what a search has found that was made before; None without one."""

        def found(rows: Any) -> list[Candidate]:
            return [self._candidate(Schedule(**row)) for row in rows]

        return read_note(self.folder / _FOUND_FILE, found)

    def _race(
        self,
        found: Validation,
        executor: Executor,
        on_progress: Callable[[int, int], None],
        until: float,
        holders: Sequence[Schedule],
        fresh: Sequence[Schedule],
    ) -> list[Schedule]:
        """Return the best of the holders and the fresh, who are fewer from level to level."""
        schedules = {self._candidate(one).name: one for one in (*holders, *fresh)}
        held = [self._candidate(one) for one in holders]
        pool = [self._candidate(one) for one in fresh]
        for rounds in _LEVELS:
            found.run([*held, *pool], rounds, executor, on_progress, until=until)
            pool = found.ranked(pool)
            if time.monotonic() >= until:
                break
            pool = pool[: max(len(pool) // 2, _KEPT)]
        return [schedules[one.name] for one in found.ranked([*held, *pool])[:_KEPT]]

    def _candidate(self, schedule: Schedule) -> Candidate:
        """Return a schedule as a policy file."""
        name = f"schedule {schedule.end:g} {schedule.by_loss:g} {schedule.by_steps:g}"
        path = self.folder / f"{name.replace(' ', '_')}.safetensors"
        if not path.exists():
            save_policy(path, schedule_policy(schedule, self.actions, self.card))
        return Candidate(name, str(path), "schedule")

    def _end_steps(self) -> float:
        """Return log2 of the steps of the tasks' best fixed runs, in the mean."""
        logs: list[float] = []
        for own in self.tasks:
            size: int = len(own.task.train_set)  # type: ignore[arg-type]
            step = self.plan.clock.run_cost(1, own.best_size, size, own.task.batch_size)
            logs.append(math.log2(max(own.reference / float(step), 2.0)))
        return round(sum(logs) / len(logs), 2)


def _neighbours(schedule: Schedule) -> list[Schedule]:
    """Return schedules that differ a little from one."""
    end, loss, steps = schedule.end, schedule.by_loss, schedule.by_steps
    changes = (
        *((1.0, 0.0, 0.125), (0.0, 0.0, 0.125), (0.0, 0.0, -0.125), (0.5, 0.0, 0.0)),
        *((0.0, -0.25, 0.0), (0.0, 0.25, 0.0), (0.0, -0.5, 0.125), (-0.5, 0.0, 0.0)),
    )
    return [
        replace(schedule, end=end + more, by_loss=loss + by_loss, by_steps=steps + by_steps)
        for more, by_loss, by_steps in changes
    ]
