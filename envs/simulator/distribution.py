"""From which ranges a simulated task is drawn.

Every mechanism has its own range, so that it can be switched off by a degenerate one
(`Distribution.replace`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rlbatch.errors import ConfigurationError

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
