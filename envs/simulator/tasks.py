"""Random simulated tasks: what is drawn for an episode, and from which ranges.

Every mechanism has its own range, so that it can be switched off by a degenerate one
(`Distribution.replace`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.simulator.arrays import Array
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import COST_CURVE_SIZES

BINS = 16
ADAM_BETA2 = 0.999

Range = tuple[float, float]


@dataclass(frozen=True)
class Distribution:
    """Ranges from which a simulated task is drawn. `log2` ranges are of exponents of two.

    Attributes:
        curvature_decades: Decades of curvature that hold loss.
        loss_tail: Exponent g of the initial loss per bin, proportional to h^g (small: much loss in
            flat directions).
        noise_tail: Exponent of the per-bin gradient noise, proportional to h^g.
        log2_noise_scale: Gradient noise scale at the start of the run.
        interpolation: Fraction of the gradient noise that vanishes with the loss (1: interpolating
            model).
        log2_base: Base batch size (rounded to a power of two).
        log2_dataset: Samples in an epoch.
        log2_horizon: Optimizer steps planned at the base batch size.
        stability: Step size at the start, base batch size, as a fraction of the stability limit;
            log-uniform.
        probability_adam: Share of Adam runs among those drawn; the rest is SGD.
        probability_momentum: Share of SGD runs with momentum 0.9.
        couplings: Probabilities of the couplings none, sqrt, linear, adascale.
        sharpening: Factor by which the largest curvature grows in the run; log-uniform.
        catapult: How far beyond the stability limit a run recovers by itself; log-uniform.
        slow_start: Share of the gradient that a fresh network shows, since its features have yet to
            form; log-uniform.
        slow_until: Share of the initial loss that is gone when it shows all of it.
        damage: Loss that a step size at twice the stability limit adds, relative to the loss;
            log-uniform.
        irreducible: Irreducible loss as a fraction of the initial loss; a negative draw is none.
        gap: Generalisation gap as a fraction of the initial loss, reached after many epochs; a
            negative draw is none.
        loss_noise: Per-sample standard deviation of the loss, as a fraction of the loss.
        validation_noise: Relative standard deviation of a validation.
        log2_directions: Directions of one curvature, of SGD: the fewer, the more a run's loss
            varies around its mean.
        adam_directions: How many times as many Adam has, which moves all of them alike.
        log2_effective_dimension: Effective dimension of the gradient noise; sets the estimator's
            error.
        probability_schedule: Share of runs with a learning-rate schedule (cosine, step or warm-up).
        log2_knee: Batch size at which the device turns from launch-bound to compute-bound.
        profile_sharpness: How abruptly.
        probability_memory_limit: Share of runs with a micro-batch limit below the largest batch
            size.
        probability_known_cost: Share of runs whose step cost is known from the start.
        probability_known_plan: Share of runs with a schedule whose policy is told the horizon.
        probability_idle_plan: The same for runs without a schedule, to which it means nothing.
        target_fraction: Point of the planned run whose validation loss is the target.
        probability_slack_adam: Share of Adam runs that are drawn anew unless a quarter of the base
            batch size reaches the target, too.
        probability_slack_sgd: Share of SGD runs that are drawn anew unless half of it does.
        log2_start: Start relative to the base batch size.
        probability_start_at_base: Share of runs that start at the base batch size.
        chunk_minimum: Optimizer steps of the first chunks.
        chunk_growth: Growth of the chunks with the steps done.
        probability_samples: Share of runs whose cost is samples, not seconds.
        probability_mixed: Share of runs whose cost is a mix.
        probability_no_validation: Share of runs whose policy does not see the validation loss.
    """

    curvature_decades: Range = (1.5, 4.5)
    loss_tail: Range = (-0.1, 0.7)
    noise_tail: Range = (0.2, 1.0)
    log2_noise_scale: Range = (1.0, 13.0)
    interpolation: Range = (0.2, 1.0)
    log2_base: Range = (3.0, 9.0)
    log2_dataset: Range = (9.5, 18.0)
    log2_horizon: Range = (5.5, 12.0)
    stability: Range = (0.003, 0.35)
    probability_adam: float = 0.78
    probability_momentum: float = 0.6
    couplings: tuple[float, float, float, float] = (0.34, 0.28, 0.26, 0.12)
    sharpening: Range = (1.0, 6.0)
    catapult: Range = (1.0, 4.0)
    slow_start: Range = (0.005, 0.6)
    slow_until: Range = (0.02, 0.4)
    damage: Range = (0.05, 3.0)
    irreducible: Range = (-0.1, 0.25)
    gap: Range = (-0.05, 0.15)
    loss_noise: Range = (0.3, 2.0)
    validation_noise: Range = (0.0, 0.01)
    log2_directions: Range = (0.0, 6.0)
    adam_directions: float = 16.0
    log2_effective_dimension: Range = (2.0, 8.5)
    probability_schedule: float = 0.2
    log2_knee: Range = (1.0, 13.0)
    profile_sharpness: Range = (1.0, 4.0)
    probability_memory_limit: float = 0.2
    probability_known_cost: float = 0.7
    probability_known_plan: float = 0.8
    probability_idle_plan: float = 0.0
    target_fraction: Range = (0.03, 0.4)
    probability_slack_adam: float = 0.9
    probability_slack_sgd: float = 0.4
    log2_start: Range = (-4.0, 4.0)
    probability_start_at_base: float = 0.35
    chunk_minimum: Range = (2.0, 6.0)
    chunk_growth: Range = (0.06, 0.16)
    probability_samples: float = 0.08
    probability_mixed: float = 0.08
    probability_no_validation: float = 0.15

    def __post_init__(self) -> None:
        """Refuse an empty range and a probability that is none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("probability") and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"{field.name} must be within [0, 1], got {value}.")
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise ConfigurationError(
                    f"{field.name} must be (low, high) with low <= high, got {value}."
                )

    def replace(self, **changes: object) -> Distribution:
        """Return a copy with some ranges changed."""
        return replace(self, **changes)


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
    d = distribution or Distribution()

    def uniform(bounds: Range) -> Array:
        return rng.uniform(*bounds, size=count)

    def log_uniform(bounds: Range) -> Array:
        return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), size=count))

    def chance(probability: float) -> Array:
        return (rng.random(count) < probability).astype(np.float64)

    position = np.linspace(0.0, 1.0, BINS)
    curvature = 10.0 ** (-uniform(d.curvature_decades)[:, None] * position)
    initial_loss = curvature ** uniform(d.loss_tail)[:, None]
    initial_loss /= initial_loss.sum(axis=1, keepdims=True)
    noise_shape = curvature ** (uniform(d.noise_tail)[:, None] - 1.0)
    noise_scale = 2.0 ** uniform(d.log2_noise_scale)
    # B_simple = sum(nu h) / sum(h l) fixes the level of nu.
    gradient = (curvature * initial_loss).sum(axis=1)
    noise = noise_shape * (noise_scale * gradient / (noise_shape * curvature).sum(axis=1))[:, None]

    adaptive = chance(d.probability_adam)
    momentum = np.where(adaptive > 0, 0.9, 0.9 * chance(d.probability_momentum))
    coupling = rng.choice(4, size=count, p=np.asarray(d.couplings))
    base = 2.0 ** np.round(uniform(d.log2_base))
    dataset = np.round(2.0 ** np.maximum(uniform(d.log2_dataset), np.log2(base) + 2))
    maximum = 2.0 ** np.floor(
        np.minimum(np.log2(dataset), np.log2(base) + rng.integers(2, 9, size=count))
    )
    maximum = np.minimum(maximum, 65536.0)
    minimum = 2.0 ** np.maximum(0.0, np.log2(base) - rng.integers(2, 10, size=count))
    shift = np.where(chance(d.probability_start_at_base) > 0, 0.0, np.round(uniform(d.log2_start)))
    start = np.clip(base * 2.0**shift, minimum, maximum)
    weight_seconds = np.ones(count)
    kind = rng.random(count)
    weight_seconds[kind < d.probability_samples] = 0.0
    mixed = (kind >= d.probability_samples) & (kind < d.probability_samples + d.probability_mixed)
    weight_seconds[mixed] = rng.uniform(0.2, 0.8, size=count)[mixed]
    tasks = SimulatedTasks(
        curvature=curvature,
        initial_loss=initial_loss,
        noise=noise,
        interpolation=uniform(d.interpolation),
        step_size=log_uniform(d.stability),
        momentum=momentum,
        adaptive=adaptive,
        coupling_exponent=np.array([0.0, 0.5, 1.0, 1.0])[coupling],
        adascale=(coupling == 3).astype(np.float64),
        base_batch_size=base,
        min_batch_size=minimum,
        max_batch_size=maximum,
        start_batch_size=start,
        dataset_size=dataset,
        horizon=np.round(2.0 ** uniform(d.log2_horizon)),
        sharpening=log_uniform(d.sharpening),
        catapult=log_uniform(d.catapult),
        slow_start=log_uniform(d.slow_start),
        slow_until=uniform(d.slow_until),
        damage=log_uniform(d.damage),
        irreducible=np.maximum(uniform(d.irreducible), 0.0),
        gap=np.maximum(uniform(d.gap), 0.0),
        loss_noise=log_uniform(d.loss_noise),
        validation_noise=uniform(d.validation_noise),
        directions=2.0 ** uniform(d.log2_directions)
        * np.where(adaptive > 0, d.adam_directions, 1.0),
        effective_dimension=2.0 ** uniform(d.log2_effective_dimension),
        schedule=chance(d.probability_schedule) * rng.integers(1, 4, size=count),
        step_cost_curve=_draw_cost_curves(count, rng, d, base, weight_seconds),
        cost_known=chance(d.probability_known_cost),
        weight_seconds=weight_seconds,
        weight_samples=1.0 - weight_seconds,
        chunk_minimum=np.round(uniform(d.chunk_minimum)),
        chunk_growth=uniform(d.chunk_growth),
        sees_validation=1.0 - chance(d.probability_no_validation),
        target_fraction=uniform(d.target_fraction),
        plan_known=np.zeros(count),
    )
    # From a generator of its own: whether a plan is told leaves every other draw as it is.
    told = rng.spawn(1)[0].random(count)
    share = np.where(tasks.schedule > 0, d.probability_known_plan, d.probability_idle_plan)
    return replace(tasks, plan_known=(told < share).astype(np.float64))


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
