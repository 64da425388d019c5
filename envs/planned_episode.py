"""One episode of a real run of so many epochs: less time, and no worse a loss in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.episode import EpisodeStep
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.privileged import PrivilegedRow
from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost
from rlbatch.envs.reward import loss_penalty, planned_reward
from rlbatch.envs.setting_draws import draw_profile
from rlbatch.envs.settings import SettingSampler
from rlbatch.envs.task import Task, resolve_task
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Coupling

_SHORTEST, _LONGEST = 8, 600  # steps at the task's batch size: longer runs hold few decisions more
_NEVER = 1e9  # validations grow so far apart that only the first and the last are made


@dataclass(frozen=True)
class PlannedSetting:
    """Everything that defines one such episode.

    Attributes:
        task: Name of a task.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        profile: Whose clock counts.
        planned_samples: Samples of the run.
        learning_rate_scale: Multiplies the task's learning rate.
        cadence: Spacing of decisions and validations.
        curve_known: What a step costs at every size is known from the start.
        noise_rate: See `rlbatch.signals.cadence.is_measured`.
        guard: Damaged chunks are rolled back.
    """

    task: str
    seed: int
    coupling: Coupling
    profile: DeviceProfile
    planned_samples: float
    learning_rate_scale: float = 1.0
    cadence: Cadence = field(default_factory=Cadence)
    curve_known: bool = True
    noise_rate: float = NOISE_RATE
    guard: bool = True


class PlannedSampler:
    """Draws tasks, lengths, learning rates, couplings and devices, from stored learning curves.

    A run is 2^-0.5 to 2^2.5 times as long as the task's batch size takes to a drawn target.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str],
        *,
        log2_length: tuple[float, float] = (-0.5, 2.5),
        known_share: float = 1.0,
    ) -> None:
        """Load the curve tables, as `SettingSampler`."""
        self._settings = SettingSampler(folder, tasks, known_share=known_share)
        self._log2_length = log2_length

    def __call__(self, rng: np.random.Generator) -> PlannedSetting:
        """Draw one setting."""
        drawn = self._settings(rng)
        base, profile = resolve_task(drawn.task).batch_size, drawn.profile or draw_profile(rng)
        # Steps at the task's batch size to the drawn target, from what they cost there.
        steps = drawn.fixed_costs[base] / float(step_cost(profile, drawn.weights, base, base))
        length = 2.0 ** rng.uniform(*self._log2_length)
        watched = rng.random() < 0.5
        return PlannedSetting(
            task=drawn.task_name,
            seed=drawn.seed,
            coupling=drawn.coupling,
            profile=profile,
            planned_samples=float(base * np.clip(round(length * steps), _SHORTEST, _LONGEST)),
            learning_rate_scale=drawn.learning_rate_scale,
            cadence=Cadence(
                minimum=drawn.cadence.minimum,
                growth=drawn.cadence.growth,
                validation_growth=0.1 if watched else _NEVER,
            ),
            curve_known=drawn.curve_known,
        )


class PlannedEpisode:
    """A run of so many samples, beside the same one at the task's batch size from start to end."""

    def __init__(self, setting: PlannedSetting) -> None:
        """Train the reference, and the first chunk of the run."""
        self.setting = setting
        task = resolve_task(setting.task)
        conditions = _conditions(task, setting)
        reference = LiveRun(task, conditions.unwatched(), backend=fastest_backend)
        while not reference.finished:
            reference.advance(task.batch_size)
        self.reference_cost, self.reference_loss = reference.cost, reference.val_loss
        self.run = LiveRun(task, conditions, backend=fastest_backend)
        self.first = self.run.advance(task.batch_size)

    @property
    def usable(self) -> bool:
        """There is something left to decide, and the reference got somewhere."""
        return not self.run.finished and 0.0 < self.reference_loss < math.inf

    @property
    def spent(self) -> float:
        """Cost so far over the reference's."""
        return self.run.cost / self.reference_cost

    @property
    def loss_ratio(self) -> float:
        """Of the latest validation to the reference's last; infinite where the run is lost."""
        lost = self.run.diverged or not math.isfinite(self.run.val_loss)
        return math.inf if lost else self.run.val_loss / self.reference_loss

    def step(self, log2_change: float) -> EpisodeStep:
        """Change the batch size and train one chunk; see `planned_reward`."""
        run, before = self.run, self.spent
        signals = run.advance(int(run.sizes_after(log2_change)))
        ended = self.loss_ratio if run.finished else 1.0
        reward = float(planned_reward(before, self.spent, ended))
        return EpisodeStep(signals, reward, run.finished, False)

    def info(self) -> dict[str, Any]:
        """Return what loggers want to know; the ratio is of costs and worse losses in one."""
        ratio = self.spent * math.exp(float(loss_penalty(self.loss_ratio)))
        return {"task": self.setting.task, "ratio": ratio, "reached": not self.run.diverged}

    def privileged_row(self) -> PrivilegedRow:
        """Return what the critic is told."""
        run, base = self.run, self.run.task.batch_size
        steps = self.setting.planned_samples / base
        return PrivilegedRow(self.spent, steps, base, run.batch_size, base, self.loss_ratio)

    def regrets(self, log2_changes: Sequence[float]) -> NDArray[np.float32]:
        """Return zeros: which size is best for so many samples is not known."""
        return np.zeros(len(log2_changes), dtype=np.float32)


def _conditions(task: Task, setting: PlannedSetting) -> RunConditions:
    """Return what a run of a setting is under, never below the task's batch size."""
    planned = round(setting.planned_samples / task.batch_size)
    return RunConditions(
        seed=setting.seed,
        coupling=setting.coupling,
        profile=setting.profile,
        objective=Objective(planned_samples=setting.planned_samples, weights=CostWeights()),
        min_batch_size=task.batch_size,
        learning_rate_scale=setting.learning_rate_scale,
        cadence=setting.cadence,
        planned_steps=planned,
        noise_rate=setting.noise_rate,
        curve_known=setting.curve_known,
        guard=setting.guard,
    )
