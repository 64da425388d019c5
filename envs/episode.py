"""One episode of a real run: what an action does to it, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.privileged import PrivilegedRow, costs_from_here, regrets
from rlbatch.envs.profiles import step_cost
from rlbatch.envs.reward import ratio_reward
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.envs.task import resolve_task, smallest_batch_size
from rlbatch.signals.record import Signals


class EpisodeStep(NamedTuple):
    """What a decision and the chunk after it gave."""

    signals: Signals
    reward: float
    terminated: bool
    truncated: bool


class LiveEpisode:
    """A run under a setting, from its first chunk to its target or its cost limit."""

    def __init__(self, setting: EpisodeSetting) -> None:
        """Build the run and train its first chunk at the start batch size."""
        self.setting = setting
        task = resolve_task(setting.task)
        conditions = RunConditions(
            seed=setting.seed,
            coupling=setting.coupling,
            profile=setting.profile,
            objective=self._objective(),
            start_batch_size=setting.start_batch_size,
            min_batch_size=smallest_batch_size(task, setting.start_batch_size),
            learning_rate_scale=setting.learning_rate_scale,
            cadence=setting.cadence,
            planned_steps=setting.planned_steps,
            plan_known=setting.plan_known,
            noise_rate=setting.noise_rate,
            curve_known=setting.curve_known,
            guard=setting.guard,
        )
        self.run = LiveRun(task, conditions, backend=fastest_backend)
        self.first = self.run.advance(setting.start_batch_size)

    def _objective(self) -> Objective:
        setting = self.setting
        limit = UNREACHED_RATIO * setting.reference_cost
        return Objective(setting.target_loss, limit, setting.weights)

    @property
    def usable(self) -> bool:
        """A run that is over within its first chunk leaves nothing to decide."""
        return not self.run.finished

    @property
    def spent(self) -> float:
        """Cost so far over the reference cost."""
        return self.run.cost / self.setting.reference_cost

    @property
    def ratio(self) -> float:
        """What the run has come to, relative to the best fixed batch size: here what is spent."""
        return self.spent

    @property
    def lost(self) -> bool:
        """The target will not be reached any more."""
        return self.run.diverged or (self.run.exhausted and not self.run.reached)

    def step_cost(self, batch_size: int) -> float:
        """Return the cost of one step; NaN on the wall clock."""
        profile, weights = self.setting.profile, self.setting.weights
        if profile is None:
            return math.nan
        return float(step_cost(profile, weights, batch_size, self.run.task.batch_size))

    def step(self, log2_change: float) -> EpisodeStep:
        """Change the batch size and train one chunk; see `ratio_reward`."""
        run, before = self.run, self.ratio
        signals = run.advance(int(run.sizes_after(log2_change)))
        reward = float(ratio_reward(before, self.ratio, lost=self.lost))
        return EpisodeStep(signals, reward, run.finished and not self.cut_off, self.cut_off)

    @property
    def reached(self) -> bool:
        """The run has come to its end as it should."""
        return self.run.reached

    @property
    def cut_off(self) -> bool:
        """A limit that is no part of the objective has ended the run."""
        return self.run.exhausted and not self.run.reached

    def info(self) -> dict[str, Any]:
        """Return what loggers want to know."""
        run = self.run
        return {
            "task": self.setting.task_name,
            "batch_size": run.batch_size,
            "steps": run.steps,
            "samples_seen": run.samples_seen,
            "ratio": self.ratio if not run.diverged else UNREACHED_RATIO,
            "reached": self.reached,
        }

    def privileged_row(self) -> PrivilegedRow:
        """Return what the critic is told."""
        setting, run = self.setting, self.run
        reference, costs, base = setting.reference_cost, setting.fixed_costs, run.task.batch_size
        best = min(costs, key=lambda size: costs[size]) if costs else base
        known = min(costs, key=lambda size: abs(np.log(size / run.batch_size))) if costs else base
        fixed = costs.get(known, np.inf) / reference
        steps = reference / self.step_cost(base)
        return PrivilegedRow(self.spent, steps, best, run.batch_size, base, fixed)

    @cached_property
    def _fixed(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Batch sizes whose whole runs are known, what these cost, and what a step of them does."""
        known = self.setting.fixed_costs
        sizes = sorted(known)
        steps = [self.step_cost(size) for size in sizes]
        return np.array(sizes), np.array([known[size] for size in sizes]), np.array(steps)

    def regrets(self, log2_changes: Sequence[float]) -> NDArray[np.float32]:
        """Return `rlbatch.envs.privileged.regrets` of the changes; zeros where nothing is known."""
        sizes, costs, steps = self._fixed
        if not len(sizes):
            return np.zeros(len(log2_changes), dtype=np.float32)
        planned, task = self.setting.planned_steps, self.run.task
        if planned is not None and task.scheduler is not None and len(sizes) > 1:
            done = self.run.samples_seen / (planned * task.batch_size)
            costs = costs_from_here(sizes, costs, steps, done)
        wanted = self.run.sizes_after(np.asarray(log2_changes))
        now = float(np.log2(self.run.batch_size))
        return regrets(costs, float(np.log2(sizes[0])), now, np.log2(wanted))
