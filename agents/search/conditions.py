"""Under what all trials of a search run, and one trial: a run at one size from start to end."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlbatch.agents.evaluate.clocks import CostClock, resolve_clock
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import MAX_STEPS, FixedSetting, planned_steps
from rlbatch.agents.evaluate.reference import budget_planned_steps
from rlbatch.agents.evaluate.run import largest_batch_size
from rlbatch.agents.evaluate.settings import parse_couplings, task_identity
from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.hopeless import is_hopeless
from rlbatch.agents.search.passes import bytes_of_pass
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.control.memory import is_out_of_memory
from rlbatch.envs.backend import TorchBackend
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

_NOT_RUN = Outcome(False, False, False, 0.0, math.nan, 0, 0, 0.0, fits=False)
_CURVE_POINTS = 60  # kept of a curve: enough to draw it and to compare runs with it


@dataclass(frozen=True)
class Conditions:
    """What all trials of a search have in common.

    Attributes:
        task: Name of a task, or `file.py:function`.
        goal: When runs end and how they compare.
        coupling: How the learning rate follows the batch size.
        profile: Clock that counts, see `resolve_clock`.
        memory_limit: Bytes that a pass may take; None for no limit.
        max_steps: Optimizer steps after which a run to a target is given up.
        cadence: Spacing of the validations.
    """

    task: str
    goal: Goal
    coupling: str = "sqrt"
    profile: str = "cpu"
    memory_limit: int | None = None
    max_steps: int = MAX_STEPS
    cadence: Cadence = field(default_factory=Cadence)

    def __post_init__(self) -> None:
        """Refuse names that nothing has, and limits that allow nothing."""
        parse_couplings([self.coupling])
        resolve_clock(self.profile)
        resolve_task(self.task)
        if self.memory_limit is not None and self.memory_limit < 1:
            raise ConfigurationError(
                f"A memory limit is a positive number of bytes, got {self.memory_limit}."
            )
        if self.max_steps < 1:
            raise ConfigurationError(f"max_steps must be at least 1, got {self.max_steps}.")

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for trials to be comparable, as JSON values."""
        values = asdict(self)
        values["task"] = task_identity(self.task, resolve_task(self.task))
        return values


class TrialRunner:
    """Runs trials of one search in this process."""

    def __init__(self, conditions: Conditions) -> None:
        """Load the task."""
        self.conditions = conditions
        self.task: Task = resolve_task(conditions.task)
        self._clock: CostClock = resolve_clock(conditions.profile)
        self._planned = _schedule_steps(conditions, self.task, self._clock)

    @property
    def largest(self) -> int:
        """Largest batch size that the task allows."""
        return largest_batch_size(self.task)

    def run(self, spec: TrialSpec, stop: Stop) -> Outcome:
        """Train at one size, and return what it came to.

        Args:
            spec: Size, rate and seed.
            stop: When to give up.
        """
        began = time.perf_counter()
        memory = 0
        if self.conditions.memory_limit is not None:
            needed = bytes_of_pass(self.task, spec.batch_size, self.conditions.memory_limit)
            if needed is None:
                seconds = time.perf_counter() - began
                return replace(_NOT_RUN, seconds=seconds)
            memory = needed
        run = self._live_run(spec, stop)
        try:
            stopped = self._train(run, spec.batch_size, stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            seconds = time.perf_counter() - began
            return replace(_NOT_RUN, cost=run.cost, seconds=seconds)
        goal = self.conditions.goal
        over = stop.max_cost is not None and goal.kind == "target" and run.cost >= stop.max_cost
        complete = run.reached if goal.kind == "target" else run.exhausted
        return Outcome(
            complete=complete and not stopped and not run.diverged,
            stopped=stopped or (over and not run.reached and not run.diverged),
            diverged=run.diverged,
            cost=run.cost,
            loss=run.val_loss,
            steps=run.steps,
            samples=run.samples_seen,
            seconds=time.perf_counter() - began,
            memory=memory,
            curve=_thinned([(v.samples, v.cost, v.loss) for v in run.validations]),
        )

    def _train(self, run: LiveRun, batch_size: int, stop: Stop) -> bool:
        """Train to the end, or until there is no hope; return whether it was given up."""
        goal, planned = self.conditions.goal, self._planned_samples
        while not run.finished:
            run.advance(batch_size)
            if not run.finished and is_hopeless(run.validations, goal, stop, planned):
                return True
        return False

    @property
    def _planned_samples(self) -> float | None:
        goal = self.conditions.goal
        if goal.kind != "epochs":
            return None
        return goal.amount * len(self.task.train_set)  # pyright: ignore[reportArgumentType]

    def _live_run(self, spec: TrialSpec, stop: Stop) -> LiveRun:
        conditions, goal = self.conditions, self.conditions.goal
        to_target = goal.kind == "target"
        under = RunConditions(
            seed=spec.seed,
            coupling=Coupling(conditions.coupling),
            profile=self._clock.profile,
            objective=Objective(
                target_loss=self.task.target if to_target else None,
                budget=goal.amount
                if goal.kind == "budget"
                else stop.max_cost
                if to_target
                else None,
                weights=self._clock.weights,
                planned_samples=self._planned_samples,
            ),
            start_batch_size=spec.batch_size,
            learning_rate_scale=2.0**spec.rate,
            cadence=conditions.cadence,
            planned_steps=self._planned,
            max_steps=conditions.max_steps if to_target else None,
        )
        # The wall clock times what a user would run.
        backend = TorchBackend if self._clock.profile is None else fastest_backend
        return LiveRun(self.task, under.unwatched(), backend=backend)


def _schedule_steps(conditions: Conditions, task: Task, clock: CostClock) -> int | None:
    """Return the steps at the task's size for which its schedule is made; None without one."""
    if task.scheduler is None:
        return None
    goal, coupling = conditions.goal, Coupling(conditions.coupling)
    setting = FixedSetting(task, conditions.task, 0, coupling, conditions.cadence)
    if goal.kind == "epochs":
        samples = goal.amount * setting.dataset_size
        return max(1, math.ceil(samples / task.batch_size))
    if goal.kind == "budget":
        return budget_planned_steps(setting, clock, goal.amount)
    return planned_steps(setting, CurveStore())


def _thinned(
    points: list[tuple[int, float, float]],
) -> tuple[tuple[float, float, float], ...]:
    """Return at most `_CURVE_POINTS` of them, spread by their place, the last one included."""
    every = max(1, math.ceil(len(points) / _CURVE_POINTS))
    kept = points[::-1][::every][::-1]
    return tuple((float(samples), cost, loss) for samples, cost, loss in kept)
