"""The runs of a benchmark that share their fixed runs: one task, one coupling, one seed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.clocks import CostClock, resolve_clock
from rlbatch.agents.evaluate.curve_files import curve_path, file_name, open_curves
from rlbatch.agents.evaluate.curve_store import append_line
from rlbatch.agents.evaluate.fixed_curves import planned_steps
from rlbatch.agents.evaluate.planned_runs import PlannedRuns, fixed_setting, lowest_size
from rlbatch.agents.evaluate.reference import (
    Reference,
    budget_planned_steps,
    budget_reference,
    find_references,
)
from rlbatch.agents.evaluate.rows import Row, cell_key, live_row
from rlbatch.agents.evaluate.run import RunResult, controlled_run
from rlbatch.agents.evaluate.settings import (
    BenchSettings,
    Group,
    cells,
    parse_epochs,
    parse_objective,
    start_factors,
)
from rlbatch.agents.search.searcher_names import Searcher, parse_searcher
from rlbatch.envs.backend import TorchBackend
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task
from rlbatch.policy.registry import policy_for, resolve_policy

RESULTS_FILE, TRAJECTORIES_FILE = "results.jsonl", "trajectories.jsonl"
TIMINGS_FILE, LOGS = "timings.jsonl", "runs"

Cell = tuple[str, int, str]
"""Profile, start batch size and policy: what tells the runs of a group apart."""


@dataclass(frozen=True)
class GroupWork:
    """A group and where its results go.

    Attributes:
        settings: Of the benchmark.
        group: What to run.
        out: Folder of the results.
        references: Folder of the fixed curves.
        logs: Write episode logs.
        todo: Runs to make: those that have no result yet.
    """

    settings: BenchSettings
    group: Group
    out: Path
    references: Path
    logs: bool = False
    todo: tuple[Cell, ...] = ()


def missing_cells(
    settings: BenchSettings, group: Group, done: Container[tuple[Any, ...]]
) -> tuple[Cell, ...]:
    """Return the runs of a group that have no result yet.

    Args:
        settings: Of the benchmark.
        group: Task, coupling and seed.
        done: As `finished_cells` returns it.
    """
    return tuple(
        (profile, size, policy)
        for profile, size, policy in cells(settings, group, resolve_task(group.task))
        if (group.task, policy, group.coupling, profile, settings.objective, size, group.seed)
        not in done
    )


def run_group(work: GroupWork, on_row: Callable[[], None] | None = None, parent: int = 0) -> None:
    """Run what is to do of a group, and append the results.

    Args:
        work: The group.
        on_row: Called after each run.
        parent: Process without which to stop; 0 for none.
    """
    runner = _GroupRunner(work, resolve_task(work.group.task))
    for profile, size, policy in work.todo:
        if parent and os.getppid() != parent:
            return  # nobody waits for the rest
        runner.run(resolve_clock(profile), size, policy)
        if on_row is not None:
            on_row()


class _GroupRunner:
    """Runs cells of one task, coupling and seed."""

    def __init__(self, work: GroupWork, task: Task) -> None:
        self._work, self._task = work, task
        group = work.group
        self._setting = fixed_setting(work.settings, group, task)
        name = self._setting.task_id
        path = curve_path(work.references, name, group.coupling, group.seed)
        self._store = open_curves(path)
        self._references: dict[str, Reference] = {}
        self._planned: PlannedRuns | None = None

    def run(self, clock: CostClock, size: int, policy: str) -> None:
        objective = self._work.settings.objective
        epochs = parse_epochs(objective)
        budget = None if epochs is not None else parse_objective(objective)
        began = time.perf_counter()
        more: Row = {}
        if epochs is not None:
            result, reference, more = self._for_epochs(clock, size, policy)
        elif budget is None:
            result, reference = self._to_target(clock, size, policy)
        else:
            result, reference = self._for_budget(clock, size, policy, budget)
        base = self._task.batch_size
        row = live_row(self._work.group, policy, clock, objective, result, reference, base) | more
        if parse_searcher(policy) is not None and result.reached:
            row["ratio"] = result.cost / reference.cost  # not capped: a search may cost many runs
        key = list(cell_key(row))
        out = self._work.out
        shape = {
            "cell": key,
            "validations": [[v.cost, _finite(v.loss)] for v in result.validations],
            "batch_sizes": [list(point) for point in result.trajectory],
        }
        timing = {
            "cell": key,
            "wall_seconds": result.wall_seconds,
            "decision_seconds": result.decision_seconds,
            "with_reference_seconds": time.perf_counter() - began,
        }
        append_line(out / TRAJECTORIES_FILE, shape)
        append_line(out / TIMINGS_FILE, timing)
        append_line(out / RESULTS_FILE, row)  # last: with it the run counts as finished

    def _to_target(self, clock: CostClock, size: int, policy: str) -> tuple[RunResult, Reference]:
        if not self._references:
            settings = self._work.settings
            sizes = list(start_factors(settings, self._task))
            self._references = find_references(
                self._setting,
                [resolve_clock(name) for name in settings.profiles],
                start_sizes=sizes,
                store=self._store,
                narrow=settings.narrow,
            )
        reference = self._references[clock.name]
        if (searcher := parse_searcher(policy)) is not None:
            return self._searched(clock, size, searcher), reference
        # Where no fixed size got there, what the default spent in vain is the most to spend again.
        cap = UNREACHED_RATIO if reference.reached else 1.0
        result = self._controlled(
            clock,
            size,
            policy,
            Objective(self._task.target, None, clock.weights),
            planned_steps(self._setting, self._store),
            cap * reference.cost,
        )
        return result, reference

    def _searched(self, clock: CostClock, size: int, searcher: Searcher) -> RunResult:
        """Return what a run costs with its share of a search, all trials charged."""
        from rlbatch.agents.search.conditions import Conditions
        from rlbatch.agents.search.goal import parse_goal
        from rlbatch.agents.search.searchers import run_searcher

        group = self._work.group
        conditions = Conditions(
            group.task,
            parse_goal("target"),
            group.coupling,
            clock.name,
            cadence=self._setting.cadence,
        )
        folder = self._work.references / "searches" / file_name(self._setting.task_id)
        return run_searcher(searcher, conditions, group.seed, size, folder)

    def _for_budget(
        self, clock: CostClock, size: int, policy: str, budget: float
    ) -> tuple[RunResult, Reference]:
        result = self._controlled(
            clock,
            size,
            policy,
            Objective(None, budget, clock.weights),
            budget_planned_steps(self._setting, clock, budget),
            None,
        )
        losses = [v.loss for v in result.validations if math.isfinite(v.loss)]
        lowest = min(losses, default=math.inf)
        reference = budget_reference(self._setting, clock, budget, lowest, store=self._store)
        return result, reference

    def _for_epochs(
        self, clock: CostClock, size: int, policy: str
    ) -> tuple[RunResult, Reference, Row]:
        if self._planned is None:
            work = self._work
            self._planned = PlannedRuns(work.settings, work.group, self._task, work.references)
        planned = self._planned.planned
        samples = float(planned * self._task.batch_size)
        objective = Objective(planned_samples=samples, weights=clock.weights)
        limit = lowest_size(resolve_policy(policy), self._task, size)
        result = self._controlled(clock, size, policy, objective, planned, None, limit)
        return result, *self._planned.compared(clock, result)

    def _controlled(
        self,
        clock: CostClock,
        size: int,
        policy: str,
        objective: Objective,
        planned: int | None,
        max_cost: float | None,
        min_batch_size: int | None = None,
    ) -> RunResult:
        return controlled_run(
            self._task,
            resolve_policy(policy_for(policy, objective.kind)),
            seed=self._setting.seed,
            coupling=self._setting.coupling,
            profile=clock.profile,
            objective=objective,
            start_factor=size / self._task.batch_size,
            min_batch_size=min_batch_size,
            cadence=self._setting.cadence,
            log_dir=self._log_folder(clock, size, policy),
            max_cost=max_cost,
            planned_steps=planned,
            curve_known=clock.told,
            run_info={"policy": policy, "lr_coupling": self._setting.coupling.value},
            # The wall clock times what a user would run.
            backend=TorchBackend if clock.profile is None else fastest_backend,
        )

    def _log_folder(self, clock: CostClock, size: int, policy: str) -> Path | None:
        """Return a new folder for a run's log; what a stopped attempt left stays beside it."""
        if not self._work.logs:
            return None
        group = self._work.group
        path = _log_path(self._work.out, group, clock.name, size, policy)
        attempt = 1
        while path.exists():
            attempt += 1
            path = path.with_name(f"{path.name}-attempt{attempt}")
        return path


def latest_log(out: Path, row: Row) -> Path:
    """Return the folder of the log of a run that is finished: of its last attempt.

    Args:
        out: Folder of the results, of a benchmark with logs.
        row: The run's result.
    """
    group = Group(row["task"], row["lr_coupling"], row["seed"])
    path = _log_path(out, group, row["profile"], row["start_batch_size"], row["policy"])
    latest, attempt = path, 2
    while (later := path.with_name(f"{path.name}-attempt{attempt}")).exists():
        latest, attempt = later, attempt + 1
    return latest


def _log_path(out: Path, group: Group, clock: str, size: int, policy: str) -> Path:
    parts = (group.task, policy, group.coupling, clock, size, f"seed{group.seed}")
    return out / LOGS / file_name("-".join(map(str, parts)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
