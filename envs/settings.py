"""Which real run an episode trains: one fixed setting, or a random one with a stored reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlbatch.envs.curves import COUPLINGS, RATE_SHIFTS, CurveTable
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.profiles import CostWeights, DeviceProfile
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling


@dataclass(frozen=True)
class EpisodeSetting:
    """Everything that defines one episode of real training.

    Attributes:
        task: Name of a task, or `file.py:function`.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        profile: Whose clock counts; None for the wall clock.
        target_loss: Validation loss that ends the run.
        start_batch_size: First batch size.
        reference_cost: Unit of the reward: an episode's rewards sum to minus cost / reference cost.
        learning_rate_scale: Multiplies the task's learning rate.
        weights: What counts as cost.
        cadence: Spacing of decisions and validations.
    """

    task: str
    seed: int
    coupling: Coupling
    profile: DeviceProfile | None
    target_loss: float
    start_batch_size: int
    reference_cost: float
    learning_rate_scale: float = 1.0
    weights: CostWeights = field(default_factory=CostWeights)
    cadence: Cadence = field(default_factory=Cadence)


class SettingSampler:
    """Draws learning rate, coupling, profile, target and start of runs of real tasks.

    The reference costs come from stored learning curves.

    The first draws of a generator repeat for the same generator state, so an environment's seed
    fixes its episodes.
    """

    def __init__(
        self, folder: Path, tasks: Sequence[str], *, log2_start: tuple[int, int] = (-4, 4)
    ) -> None:
        """Load the curve tables of these tasks from a folder that scripts/make_curves.py made."""
        if not tasks:
            raise ConfigurationError("At least one task is needed to draw settings from, got none.")
        self._tables = [CurveTable.load(folder / f"{name}.npz") for name in tasks]
        self._tasks = {name: resolve_task(name) for name in tasks}
        self._log2_start = log2_start

    def __call__(self, rng: np.random.Generator) -> EpisodeSetting:
        """Draw one setting whose target a default run reaches."""
        while True:
            table = self._tables[int(rng.integers(len(self._tables)))]
            setting = self._draw(table, rng)
            if setting is not None:
                return setting

    def _draw(self, table: CurveTable, rng: np.random.Generator) -> EpisodeSetting | None:
        task = self._tasks[table.task]
        rate_shift = int(rng.choice(RATE_SHIFTS))
        coupling = COUPLINGS[int(rng.integers(len(COUPLINGS)))]
        profile = draw_profile(rng)
        weights = CostWeights() if rng.random() < 0.9 else CostWeights(seconds=0.0, samples=1.0)
        target = task.target * float(np.exp(rng.uniform(np.log(0.97), np.log(1.5))))
        costs = table.costs(target, rate_shift, coupling, profile, weights, task.batch_size)
        reference = min(costs.values())
        if not np.isfinite(costs[task.batch_size]) or not np.isfinite(reference):
            return None
        size: int = len(task.train_set)  # type: ignore[arg-type]
        largest = task.max_batch_size or size
        shift = (
            0
            if rng.random() < 0.35
            else int(rng.integers(self._log2_start[0], self._log2_start[1] + 1))
        )
        return EpisodeSetting(
            task=table.task,
            seed=int(rng.integers(2**31)),
            coupling=coupling,
            profile=profile,
            target_loss=target,
            start_batch_size=int(np.clip(task.batch_size * 2.0**shift, 1, largest)),
            reference_cost=reference,
            learning_rate_scale=2.0 ** (rate_shift / 2),
            weights=weights,
            cadence=Cadence(minimum=int(rng.integers(2, 7)), growth=float(rng.uniform(0.06, 0.14))),
        )


def draw_profile(rng: np.random.Generator) -> DeviceProfile:
    """A random device, from saturated by a few samples to launch-bound up to thousands."""
    knee = 2.0 ** rng.uniform(1.0, 13.0)
    return DeviceProfile(
        "drawn",
        launch_seconds=1e-3,
        sample_seconds=1e-3 / knee,
        update_seconds=1e-3 * rng.uniform(0.0, 0.5),
        sharpness=rng.uniform(1.0, 4.0),
    )
