"""Draws the runs of one's own tasks that a policy learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlbatch.agents.evaluate.run import start_size
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts
from rlbatch.agents.own_tasks.plan import TRAINING_SEED, Plan
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.signals.record import Coupling


class OwnTaskSampler:
    """Draws task, start and seed; all else is as in the runs that the policy is for."""

    def __init__(self, plan: Plan, tasks: Sequence[TaskCosts]) -> None:
        """Of a plan, with the costs of its tasks."""
        self._plan, self._tasks = plan, tuple(tasks)

    def __call__(self, rng: np.random.Generator) -> EpisodeSetting:
        """Draw one setting."""
        plan, clock = self._plan, self._plan.clock
        own = self._tasks[int(rng.integers(len(self._tasks)))]
        low, high = plan.shifts
        return EpisodeSetting(
            task=own.task,
            seed=int(rng.integers(TRAINING_SEED, 2**31)),
            coupling=Coupling(plan.coupling),
            profile=clock.profile,
            target_loss=own.task.target,
            start_batch_size=start_size(own.task, 2.0 ** int(rng.integers(low, high + 1))),
            reference_cost=own.reference,
            weights=clock.weights,
            planned_steps=own.planned,
            fixed_costs=own.costs,
            curve_known=clock.told,
        )
