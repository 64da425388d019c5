"""The same setting for every episode, with a reference that is measured once."""

from __future__ import annotations

import numpy as np

from rlbatch.envs.arguments import require_planned_steps, start_batch_size
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

_LONGEST_DEFAULT_RUN = 20_000  # optimizer steps after which a task's target counts as out of reach
_WARM_UP_STEPS = 50  # of a run whose clock does not count: first steps of a process are slow


class FixedSource:
    """The same setting every time, with a new seed.

    Its reward is in units of what a run at the task's own batch size costs on the same clock.
    """

    def __init__(
        self,
        task: str | Task,
        coupling: Coupling,
        profile: DeviceProfile | None,
        start: float,
        planned_steps: int | None = None,
    ) -> None:
        """Look the task up; the reference run is made at the first call.

        Args:
            task: A task, its name, or `file.py:function`.
            coupling: How the learning rate follows the batch size.
            profile: Whose clock counts; None for the wall clock.
            start: First batch size relative to the task's.
            planned_steps: Steps at the task's batch size for which its schedule is made; None takes
                what the task says.

        Raises:
            ConfigurationError: The start or the steps are out of range, or the schedule has no
                length.
        """
        require_planned_steps(planned_steps)
        self._task = resolve_task(task)
        if planned_steps is None:
            planned_steps = self._task.planned_steps()
        if self._task.scheduler is not None and planned_steps is None:
            raise ConfigurationError(
                f"Task {self._task.name!r} has a learning rate schedule. Say for how many steps at "
                f"batch size {self._task.batch_size} it is made, by planned_steps=..., or give the "
                "task its epochs=...."
            )
        self._coupling, self._profile, self._planned = coupling, profile, planned_steps
        self._start = start_batch_size(self._task, start)
        self._reference: float | None = None

    def __call__(self, rng: np.random.Generator) -> EpisodeSetting:
        """Return the setting with a seed from the generator."""
        if self._reference is None:
            profile = self._profile
            self._reference = self._wall_cost() if profile is None else self._profile_cost(profile)
        return EpisodeSetting(
            task=self._task,
            seed=int(rng.integers(2**31)),
            coupling=self._coupling,
            profile=self._profile,
            target_loss=self._task.target,
            start_batch_size=self._start,
            reference_cost=self._reference,
            planned_steps=self._planned,
        )

    def _profile_cost(self, profile: DeviceProfile) -> float:
        size = self._task.batch_size
        curve = fixed_run_curve(
            self._task,
            size,
            seed=0,
            coupling=self._coupling,
            target_loss=self._task.target,
            max_steps=_LONGEST_DEFAULT_RUN,
            planned_steps=self._planned,
        )
        self._require_reached(curve.reached)
        return float(curve.steps[-1] * step_cost(profile, CostWeights(), size, size))

    def _wall_cost(self) -> float:
        """Return the seconds of a run on this machine, by the code that runs the episodes."""
        self._wall_run(_WARM_UP_STEPS)
        run = self._wall_run(_LONGEST_DEFAULT_RUN)
        self._require_reached(run.reached)
        return run.cost

    def _wall_run(self, max_steps: int) -> LiveRun:
        conditions = RunConditions(
            seed=0,
            coupling=self._coupling,
            profile=None,
            objective=Objective(self._task.target),
            planned_steps=self._planned,
            max_steps=max_steps,
        )
        run = LiveRun(self._task, conditions.unwatched(), backend=fastest_backend)
        while not run.finished:
            run.advance(self._task.batch_size)
        return run

    def _require_reached(self, reached: bool) -> None:
        if not reached:
            raise ConfigurationError(
                f"Task {self._task.name!r}: the default batch size {self._task.batch_size} did not "
                f"reach the target {self._task.target} in {_LONGEST_DEFAULT_RUN} steps. "
                "Choose an easier target."
            )
