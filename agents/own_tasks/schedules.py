"""A search for a good schedule of sizes, by successive halving on runs that all share their seeds.

Three numbers are few enough to be found with some hundred runs, where a network takes more. (Li et
al. 2018, "Hyperband", section 3, describes the halving.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlbatch.agents.executor import Executor
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts
from rlbatch.agents.own_tasks.plan import TRAINING_SEED, Plan
from rlbatch.agents.own_tasks.rule_networks import Schedule, schedule_policy
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import save_policy

_SLOPES = ((0.0, 0.0), (-1.0, 0.0), (-0.5, 0.0), (0.0, 0.125), (0.0, 0.25), (0.0, 0.5))
_HALVINGS = ((1, 8), (3, 4))  # seeds, and how many are left
_LAST_SEEDS = 6


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
        best_shift: int,
        executor: Executor,
        on_progress: Callable[[int, int], None],
        until: float,
    ) -> list[Candidate]:
        """Return the best schedules that were found in the time, two at most, the best first.

        Args:
            best_shift: log2 of the best fixed size over the task's.
            executor: Where they run.
            on_progress: Called with the runs that are done and all of them, in each round.
            until: When to stop, by `time.monotonic`.
        """
        path = self.folder / "runs.jsonl"
        found = Validation(self.plan, self.tasks, path, TRAINING_SEED)
        end = self._end_steps()
        pool = [
            Schedule(best_shift + more, *slopes, end)
            for slopes in _SLOPES
            for more in (0, 1, -1, 2)
        ]
        schedules = {self._candidate(one).name: one for one in pool}
        best: list[Schedule] = []
        for seeds, left in (*_HALVINGS, (_LAST_SEEDS, 2)):
            candidates = [self._candidate(one) for one in pool]
            found.run(candidates, seeds, executor, on_progress, until=until)
            made = [one for one in candidates if found.seeds_of(one.name) >= seeds]
            if not made:
                break
            made.sort(key=lambda one: found.score(one.name, seeds))
            pool = [schedules[one.name] for one in made[:left]]
            best = pool[:2]
            if seeds < _HALVINGS[-1][0]:
                near = [one for one in _neighbours(pool[0]) if one not in pool]
                schedules |= {self._candidate(one).name: one for one in near}
                pool += near
        return [self._candidate(one) for one in best]

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
    loss, steps = schedule.by_loss, schedule.by_steps
    return [
        replace(schedule, end=schedule.end + 1, by_steps=steps + 0.125),
        replace(schedule, by_steps=steps + 0.125),
        replace(schedule, by_steps=steps - 0.0625),
        replace(schedule, by_loss=loss - 0.25),
        replace(schedule, by_loss=loss + 0.25),
        replace(schedule, by_loss=loss - 0.5, by_steps=steps + 0.125),
    ]
