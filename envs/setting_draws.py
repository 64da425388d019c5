"""Random parts of the settings of episodes: devices, costs, targets, cadences, batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rlbatch.envs.curves import CurveTable
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.profiles import CostWeights, DeviceProfile
from rlbatch.envs.task import Task
from rlbatch.envs.tasks.random_job import KINDS, kind_of
from rlbatch.signals.record import Coupling

_LOOSEST = 1.5  # target of a named task, over its own
_USER_SPREAD = (0.5, 1.0)  # mean and standard deviation of log2, see `user_shift`


def draw_rate(table: CurveTable, rng: np.random.Generator) -> tuple[int, Coupling] | None:
    """Return a rate shift and a coupling for which a table has curves; None where it has none."""
    rates = table.rates()
    if not rates:
        return None
    rate_shift = int(rng.choice(rates))
    couplings = table.couplings(rate_shift)
    return (rate_shift, couplings[int(rng.integers(len(couplings)))]) if couplings else None


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


def with_watts(profile: DeviceProfile, rng: np.random.Generator) -> DeviceProfile:
    """The device with drawn powers: mostly idle ones have seconds cost joules, others samples."""
    idle, busy = rng.uniform(10.0, 100.0), rng.uniform(20.0, 300.0)
    return replace(profile, idle_watts=idle, busy_watts=busy)


def draw_mix(rng: np.random.Generator) -> CostWeights:
    """Return weights of joules alone, or of all three kinds of cost."""
    if rng.random() < 0.5:
        return CostWeights(seconds=0.0, joules=1.0)
    seconds, samples, joules = rng.dirichlet((1.0, 1.0, 1.0))
    return CostWeights(seconds, samples, joules)


def draw_target(table: CurveTable, task: Task, rng: np.random.Generator) -> float:
    """Return a validation loss to reach: the task's own, or up to some tens of percent higher."""
    kind = KINDS.get(kind_of(table.task))
    loosest = _LOOSEST if kind is None else kind.loosest_target
    return task.target * float(np.exp(rng.uniform(np.log(0.97), np.log(loosest))))


def draw_cadence(rng: np.random.Generator) -> Cadence:
    """Return how far apart decisions are; validations are as usual."""
    return Cadence(
        minimum=int(rng.integers(2, 7)),
        growth=float(rng.uniform(0.06, 0.14)),
        validation_growth=0.05,
    )


def start_size(task: Task, shift: int) -> int:
    """Return the first batch size, so many doublings from the task's, within its limits."""
    size: int = len(task.train_set)  # type: ignore[arg-type]
    return int(np.clip(task.batch_size * 2.0**shift, 1, task.max_batch_size or size))


def user_shift(costs: Mapping[int, float], batch_size: int, rng: np.random.Generator) -> int:
    """Return by how many doublings a user's batch size differs from the task's.

    The spread is that of the field suite's development jobs around their cheapest size on the
    profile `cpu`. A size at which the target is not reached is nobody's.
    """
    cheapest = min(costs, key=lambda size: costs[size])
    size = cheapest * 2.0 ** round(rng.normal(*_USER_SPREAD))
    if not np.isfinite(costs.get(round(size), np.inf)):
        size = cheapest
    return round(np.log2(size / batch_size))
