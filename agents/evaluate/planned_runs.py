"""What runs of so many epochs are held against: the frontier, and the user's own size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.fixed_curves import MAX_STEPS, FixedSetting
from rlbatch.agents.evaluate.frontier import Frontier, FrontierCost, time_at_equal_loss
from rlbatch.agents.evaluate.frontier_runs import (
    FRONTIER_SEEDS,
    FrontierRuns,
    FrontierWork,
    Plan,
    make_frontier,
    plans,
)
from rlbatch.agents.evaluate.reference import Reference
from rlbatch.agents.evaluate.run import RunResult
from rlbatch.agents.evaluate.settings import BenchSettings, Group, parse_epochs, task_identity
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, planned_length, resolve_task, smallest_batch_size
from rlbatch.envs.tasks.field import PREFIX, field_job
from rlbatch.policy.base import Policy
from rlbatch.signals.record import Coupling

LONGEST_UNREACHED = 4
"""Multiple of a field job's planned steps after which a fixed run counts as unreached while no size
has reached the target: its schedule is long over then."""


def fixed_setting(settings: BenchSettings, group: Group, task: Task) -> FixedSetting:
    """Return what the fixed runs of a group are run for.

    A job of the field suite has the length that its user gave it, under every objective.
    """
    planned = field_job(group.task).planned_steps() if group.task.startswith(PREFIX) else None
    return FixedSetting(
        task,
        task_identity(group.task, task),
        group.seed,
        Coupling(group.coupling),
        settings.cadence,
        backend=fastest_backend,
        planned=planned,
        max_steps=MAX_STEPS if planned is None else LONGEST_UNREACHED * planned,
    )


def lowest_size(policy: Policy, task: Task, start_batch_size: int) -> int:
    """Return the smallest batch size of a run of so many epochs.

    It is the user's, or the first one where that is smaller, as for a run under the controller
    that has no target. A rule that is made of smaller sizes says so by `goes_below_base`, and gets
    the limit of the other objectives.

    Args:
        policy: What decides.
        task: What is trained.
        start_batch_size: First batch size.
    """
    if getattr(policy, "goes_below_base", False):
        return smallest_batch_size(task, start_batch_size)
    return min(task.batch_size, start_batch_size)


def frontier_works(settings: BenchSettings, references: Path) -> list[FrontierWork]:
    """Return the fixed runs that a benchmark of runs of so many epochs needs, a seed each."""
    epochs = parse_epochs(settings.objective)
    if epochs is None:
        return []
    found: list[FrontierWork] = []
    for group in frontier_groups(settings):
        task = resolve_task(group.task)
        setting = fixed_setting(settings, group, task)
        planned = planned_length(epochs, setting.dataset_size, task.batch_size)
        path = curve_path(references, setting.task_id, group.coupling, group.seed)
        found.append(FrontierWork(setting, planned, path))
    return found


def frontier_groups(settings: BenchSettings) -> list[Group]:
    """Return the groups whose fixed runs make frontiers; none but in runs of so many epochs."""
    if parse_epochs(settings.objective) is None:
        return []
    return [
        Group(task, coupling, seed)
        for task in settings.tasks
        for seed in range(_seeds(settings))
        for coupling in settings.couplings
    ]


class PlannedRuns:
    """The fixed runs of a task and a coupling, all seeds, as one seed's runs are held against them.

    Attributes:
        planned: Steps of the run at the task's batch size.
    """

    def __init__(self, settings: BenchSettings, group: Group, task: Task, references: Path) -> None:
        """Read the curves of every seed; what is missing is run when it is asked for.

        Args:
            settings: Of the benchmark, whose objective is `epochs=N`.
            group: Task, coupling and the seed of the runs to compare.
            task: The task.
            references: Folder of the curves.
        """
        own = fixed_setting(settings, group, task)
        epochs = parse_epochs(settings.objective) or math.nan
        self.planned = planned_length(epochs, own.dataset_size, task.batch_size)
        self._plans = plans(own, self.planned)
        self._runs = [
            _runs(settings, Group(group.task, group.coupling, seed), task, references)
            for seed in range(_seeds(settings))
        ]
        self._own = self._runs[group.seed]
        self._frontiers: dict[str, Frontier] = {}

    def compared(self, clock: CostClock, result: RunResult) -> tuple[Reference, dict[str, Any]]:
        """Return the frontier's cost at a run's final loss, and further fields of its row.

        These are the time at equal loss; the cost of the user's size and of the start size at equal
        samples, without their cap; the run's time and final loss over those of the user's size with
        the same seed; and whether the loss lies beyond the frontier.

        Args:
            clock: What cost is counted in.
            result: Of the run.
        """
        base, start = self._own.setting.task.batch_size, result.start_batch_size
        user = self._own.end(Plan(base, self.planned))
        costs = {size: self._cost(clock, size) for size in (base, start)}
        loss, user_loss = result.final_val_loss, user.val_loss[0]
        found, ratio, worse = FrontierCost(costs[base], base, beyond=True), UNREACHED_RATIO, None
        if math.isfinite(loss) and not result.diverged:
            frontier = self._frontier(clock)
            found, ratio = frontier.at(loss), time_at_equal_loss(result.cost, loss, frontier)
            worse = loss / user_loss
        more = {
            "ratio": ratio,
            "default_cost": costs[base],
            "start_cost": costs[start],
            "time_to_default": result.cost / costs[base],
            "loss_to_default": worse if worse is None or math.isfinite(worse) else None,
            "beyond_frontier": found.beyond,
        }
        return Reference(found.cost, found.batch_size, reached=True, costs=costs), more

    def _frontier(self, clock: CostClock) -> Frontier:
        if clock.name not in self._frontiers:
            self._frontiers[clock.name] = make_frontier(self._runs, self._plans, clock)
        return self._frontiers[clock.name]

    def _cost(self, clock: CostClock, size: int) -> float:
        """Return the cost of the planned samples at a fixed size, whole epochs of batches."""
        setting = self._own.setting
        base, epoch = setting.task.batch_size, setting.dataset_size
        epochs, rest = divmod(self.planned * base, epoch)
        steps = epochs * -(-epoch // size) + -(-rest // size)
        return float(clock.run_cost(steps, size, setting.dataset_size, base))


def _seeds(settings: BenchSettings) -> int:
    return max(FRONTIER_SEEDS, settings.seeds)


def _runs(settings: BenchSettings, group: Group, task: Task, references: Path) -> FrontierRuns:
    setting = fixed_setting(settings, group, task)
    path = curve_path(references, setting.task_id, group.coupling, group.seed)
    return FrontierRuns(setting, open_curves(path))
