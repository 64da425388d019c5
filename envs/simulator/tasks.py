"""Random simulated tasks: what is drawn for an episode."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.distribution import Distribution, Range
from rlbatch.signals.record import COST_CURVE_SIZES

BINS = 16
ADAM_BETA2 = 0.999


@dataclass(frozen=True)
class SimulatedTasks:
    """Drawn tasks, one entry a task in each array; (n, BINS) where the comment says so."""

    curvature: Array  # (n, BINS), largest is 1
    initial_loss: Array  # (n, BINS), sums to 1
    noise: Array  # (n, BINS): loss-noise coefficient nu, see `QuadraticRuns`
    interpolation: Array
    step_size: Array
    momentum: Array
    adaptive: Array
    coupling_exponent: Array
    adascale: Array
    base_batch_size: Array
    min_batch_size: Array
    max_batch_size: Array
    start_batch_size: Array
    dataset_size: Array
    horizon: Array
    sharpening: Array
    catapult: Array
    slow_start: Array
    slow_until: Array
    damage: Array
    irreducible: Array
    gap: Array
    loss_noise: Array
    validation_noise: Array
    directions: Array
    effective_dimension: Array
    schedule: Array  # 0 constant, 1 cosine, 2 step, 3 warm-up
    step_cost_curve: Array  # (n, 17): log2 cost of a step, 0 at the base batch size
    cost_known: Array
    weight_seconds: Array
    weight_samples: Array
    chunk_minimum: Array
    chunk_growth: Array
    sees_validation: Array
    target_fraction: Array
    plan_known: Array

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.step_size)

    def take(self, index: Array | slice) -> SimulatedTasks:
        """Return the tasks at these positions."""
        return SimulatedTasks(
            **{field.name: getattr(self, field.name)[index] for field in fields(self)}
        )


def draw_tasks(
    count: int, rng: np.random.Generator, distribution: Distribution | None = None
) -> SimulatedTasks:
    """Draw random tasks.

    Args:
        count: How many.
        rng: Source of randomness; the same generator state gives the same tasks.
        distribution: Ranges; the default one is what the shipped policy was trained on.
    """
    draws = _Draws(count, rng, distribution or Distribution())
    # In this order: a generator's state gives the same tasks for ever.
    values = _loss_shape(draws) | _optimizer(draws) | _sizes(draws) | _cost_weights(draws)
    values |= _course(draws, values["adaptive"]) | _conditions(draws, values)
    # From a generator of its own: whether a plan is told leaves every other draw as it is.
    told, d = rng.spawn(1)[0].random(count), draws.ranges
    share = np.where(values["schedule"] > 0, d.probability_known_plan, d.probability_idle_plan)
    return SimulatedTasks(**values, plan_known=(told < share).astype(np.float64))


@dataclass(frozen=True)
class _Draws:
    """Numbers for so many tasks, from their ranges."""

    count: int
    rng: np.random.Generator
    ranges: Distribution

    def uniform(self, bounds: Range) -> Array:
        return self.rng.uniform(*bounds, size=self.count)

    def log_uniform(self, bounds: Range) -> Array:
        return np.exp(self.rng.uniform(np.log(bounds[0]), np.log(bounds[1]), size=self.count))

    def chance(self, probability: float) -> Array:
        return (self.rng.random(self.count) < probability).astype(np.float64)

    def integers(self, low: int, high: int) -> Array:
        return self.rng.integers(low, high, size=self.count)


def _loss_shape(draws: _Draws) -> dict[str, Array]:
    """Where the loss and the noise lie among the curvatures."""
    d, uniform = draws.ranges, draws.uniform
    position = np.linspace(0.0, 1.0, BINS)
    curvature = 10.0 ** (-uniform(d.curvature_decades)[:, None] * position)
    initial_loss = curvature ** uniform(d.loss_tail)[:, None]
    initial_loss /= initial_loss.sum(axis=1, keepdims=True)
    noise_shape = curvature ** (uniform(d.noise_tail)[:, None] - 1.0)
    noise_scale = 2.0 ** uniform(d.log2_noise_scale)
    # B_simple = sum(nu h) / sum(h l) fixes the level of nu.
    gradient = (curvature * initial_loss).sum(axis=1)
    noise = noise_shape * (noise_scale * gradient / (noise_shape * curvature).sum(axis=1))[:, None]
    return {"curvature": curvature, "initial_loss": initial_loss, "noise": noise}


def _optimizer(draws: _Draws) -> dict[str, Array]:
    d = draws.ranges
    adaptive = draws.chance(d.probability_adam)
    momentum = np.where(adaptive > 0, 0.9, 0.9 * draws.chance(d.probability_momentum))
    coupling = draws.rng.choice(4, size=draws.count, p=np.asarray(d.couplings))
    return {
        "adaptive": adaptive,
        "momentum": momentum,
        "coupling_exponent": np.array([0.0, 0.5, 1.0, 1.0])[coupling],
        "adascale": (coupling == 3).astype(np.float64),
    }


def _sizes(draws: _Draws) -> dict[str, Array]:
    """Batch sizes, and samples of an epoch."""
    d, uniform = draws.ranges, draws.uniform
    base = 2.0 ** np.round(uniform(d.log2_base))
    dataset = np.round(2.0 ** np.maximum(uniform(d.log2_dataset), np.log2(base) + 2))
    maximum = 2.0 ** np.floor(np.minimum(np.log2(dataset), np.log2(base) + draws.integers(2, 9)))
    minimum = 2.0 ** np.maximum(0.0, np.log2(base) - draws.integers(2, 10))
    maximum = np.minimum(maximum, 65536.0)
    at_base = draws.chance(d.probability_start_at_base) > 0
    shift = np.where(at_base, 0.0, np.round(uniform(d.log2_start)))
    return {
        "base_batch_size": base,
        "min_batch_size": minimum,
        "max_batch_size": maximum,
        "start_batch_size": np.clip(base * 2.0**shift, minimum, maximum),
        "dataset_size": dataset,
    }


def _cost_weights(draws: _Draws) -> dict[str, Array]:
    d = draws.ranges
    seconds = np.ones(draws.count)
    kind = draws.rng.random(draws.count)
    seconds[kind < d.probability_samples] = 0.0
    mixed = (kind >= d.probability_samples) & (kind < d.probability_samples + d.probability_mixed)
    seconds[mixed] = draws.uniform((0.2, 0.8))[mixed]
    return {"weight_seconds": seconds, "weight_samples": 1.0 - seconds}


def _course(draws: _Draws, adaptive: Array) -> dict[str, Array]:
    """How the loss goes down, and what blurs it."""
    d, uniform, log_uniform = draws.ranges, draws.uniform, draws.log_uniform
    return {
        "interpolation": uniform(d.interpolation),
        "step_size": log_uniform(d.stability),
        "horizon": np.round(2.0 ** uniform(d.log2_horizon)),
        "sharpening": log_uniform(d.sharpening),
        "catapult": log_uniform(d.catapult),
        "slow_start": log_uniform(d.slow_start),
        "slow_until": uniform(d.slow_until),
        "damage": log_uniform(d.damage),
        "irreducible": np.maximum(uniform(d.irreducible), 0.0),
        "gap": np.maximum(uniform(d.gap), 0.0),
        "loss_noise": log_uniform(d.loss_noise),
        "validation_noise": uniform(d.validation_noise),
        "directions": 2.0 ** uniform(d.log2_directions)
        * np.where(adaptive > 0, d.adam_directions, 1.0),
        "effective_dimension": 2.0 ** uniform(d.log2_effective_dimension),
    }


def _conditions(draws: _Draws, values: dict[str, Array]) -> dict[str, Array]:
    """What a run is under: schedule, costs, cadence, and what a policy sees of it."""
    d, uniform, chance = draws.ranges, draws.uniform, draws.chance
    base, weight_seconds = values["base_batch_size"], values["weight_seconds"]
    return {
        "schedule": chance(d.probability_schedule) * draws.integers(1, 4),
        "step_cost_curve": _draw_cost_curves(draws.count, draws.rng, d, base, weight_seconds),
        "cost_known": chance(d.probability_known_cost),
        "chunk_minimum": np.round(uniform(d.chunk_minimum)),
        "chunk_growth": uniform(d.chunk_growth),
        "sees_validation": 1.0 - chance(d.probability_no_validation),
        "target_fraction": uniform(d.target_fraction),
    }


def _draw_cost_curves(
    count: int, rng: np.random.Generator, d: Distribution, base: Array, weight_seconds: Array
) -> Array:
    knee = 2.0 ** rng.uniform(*d.log2_knee, size=count)
    sharpness = rng.uniform(*d.profile_sharpness, size=count)
    update = rng.uniform(0.0, 0.5, size=count)
    limited = rng.random(count) < d.probability_memory_limit
    limit = np.where(limited, 2.0 ** rng.integers(4, 12, size=count), 65536.0)
    curves = np.empty((count, len(COST_CURVE_SIZES)))
    for i in range(count):
        profile = DeviceProfile(
            "drawn",
            launch_seconds=1.0,
            sample_seconds=1.0 / knee[i],
            update_seconds=update[i],
            sharpness=sharpness[i],
            max_micro_batch_size=int(limit[i]),
        )
        seconds = profile.step_seconds(COST_CURVE_SIZES) / profile.step_seconds(base[i])
        curves[i] = np.log2(
            weight_seconds[i] * seconds + (1.0 - weight_seconds[i]) * COST_CURVE_SIZES / base[i]
        )
    return curves
