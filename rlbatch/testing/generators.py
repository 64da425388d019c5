"""Random inputs for tests: signals as wild as they may legally be, and policies with random weights."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from rlbatch.signals.record import COST_CURVE_SIZES, Array, Numeric, RunContext, Signals

MAY_BE_MISSING = (
    *("train_loss", "train_loss_std", "val_loss", "grad_sqr", "grad_sqr_se", "noise_trace"),
    *("noise_trace_se", "gradient_cosine", "predicted_decrease"),
)
"""Fields of `Signals` that are NaN when they were not measured."""


def random_signals(
    shape: tuple[int, ...], rng: np.random.Generator, missing: float = 0.2
) -> Signals:
    """Return legal signals over many orders of magnitude.

    Args:
        shape: Leading axes; `()` gives one run with plain floats.
        rng: Source of randomness.
        missing: Probability with which each value that may be missing is NaN.
    """

    def between(low: float, high: float) -> Array:
        return rng.uniform(low, high, shape)

    def powers_of_ten(low: float, high: float) -> Array:
        return 10.0 ** between(low, high)

    context = random_context(shape, rng)
    low, high = np.log2(context.min_batch_size), np.log2(context.max_batch_size)
    steps = np.round(powers_of_ten(0, 3))
    loss = powers_of_ten(-6, 6)
    curve_floor, curve_slope = powers_of_ten(-4, 2), powers_of_ten(-6, 0)
    values: dict[str, Array] = {
        "batch_size": np.round(2.0 ** (low + (high - low) * between(0, 1))),
        "steps": steps,
        "total_steps": steps + np.round(powers_of_ten(0, 5)),
        "total_samples": np.round(powers_of_ten(1, 9)),
        "chunk_cost": powers_of_ten(-4, 4),
        "total_cost": powers_of_ten(4, 8),
        "train_loss": loss,
        "train_loss_std": loss * powers_of_ten(-4, 1),
        "val_loss": loss * powers_of_ten(-1, 1),
        "grad_sqr": powers_of_ten(-12, 8) * rng.choice([1.0, 1.0, -1.0], shape),
        "grad_sqr_se": powers_of_ten(-12, 8),
        "noise_trace": powers_of_ten(-10, 10),
        "noise_trace_se": powers_of_ten(-10, 10),
        "gradient_cosine": between(-1, 1),
        "predicted_decrease": powers_of_ten(-8, 4) * rng.choice([1.0, -1.0], shape),
        "learning_rate_factor": powers_of_ten(-2, 2),
        "schedule_factor": between(0, 1),
        "step_cost_curve": np.log2(curve_floor[..., None] + curve_slope[..., None] * COST_CURVE_SIZES),
        "step_cost_known": between(0, 1),
        "nonfinite_steps": np.round(steps * between(0, 1) * (between(0, 1) < 0.1)),
        "rolled_back": np.round(between(0, 0.6)),
    }
    for name in MAY_BE_MISSING:
        values[name] = np.where(between(0, 1) < missing, np.nan, values[name])
    return Signals(context=context, **{name: _plain(name, value) for name, value in values.items()})


def random_context(shape: tuple[int, ...], rng: np.random.Generator) -> RunContext:
    """Return legal constants of a run; about half of the runs have a target, the others a budget."""
    smallest = 2.0 ** rng.integers(0, 6, shape)
    base = smallest * 2.0 ** rng.integers(0, 6, shape)
    coupling = rng.integers(0, 4, shape)
    has_target = rng.uniform(size=shape) < 0.5
    weights = rng.dirichlet(np.ones(3), shape)
    values: dict[str, Array] = {
        "base_batch_size": base,
        "min_batch_size": smallest,
        "max_batch_size": base * 2.0 ** rng.integers(0, 7, shape),
        "dataset_size": np.round(10.0 ** rng.uniform(2, 7, shape)),
        "learning_rate": 10.0 ** rng.uniform(-5, 1, shape),
        "momentum": rng.choice([0.0, 0.9, 0.99], shape),
        "adaptive": rng.integers(0, 2, shape).astype(np.float64),
        "coupling_exponent": np.asarray([0.0, 0.5, 1.0, 1.0])[coupling],
        "adascale": (coupling == 3).astype(np.float64),
        "target_loss": np.where(has_target, 10.0 ** rng.uniform(-6, 6, shape), np.nan),
        "budget": np.where(has_target, np.nan, 10.0 ** rng.uniform(4, 8, shape)),
        "weight_seconds": weights[..., 0],
        "weight_samples": weights[..., 1],
        "weight_joules": weights[..., 2],
    }
    return RunContext(**{name: _plain(name, value) for name, value in values.items()})


def one_run(signals: Signals, index: tuple[int, ...]) -> Signals:
    """Return the signals of one run, with plain floats, out of an array of runs."""

    def pick(record: Any) -> dict[str, Any]:
        names = (field.name for field in fields(record) if field.name != "context")
        return {name: _plain(name, np.asarray(getattr(record, name))[index]) for name in names}

    return replace(signals, context=RunContext(**pick(signals.context)), **pick(signals))


def random_policy(
    rng: np.random.Generator,
    hidden: tuple[int, ...] = (16, 8),
    members: int = 1,
    scale: float = 1.0,
    **settings: Any,
) -> LearnedPolicy:
    """Return a learned policy with random weights.

    Args:
        rng: Source of the weights.
        hidden: Sizes of the hidden layers of both nets.
        members: Networks in the ensemble.
        scale: Factor on the weights; large ones give confident policies.
        settings: Other fields of `LearnedPolicy`.
    """
    grid = settings.pop("action_grid", (-2.0, -1.0, 0.0, 1.0, 2.0))

    def chain(outputs: int) -> tuple[Layer, ...]:
        sizes = (OBSERVATION_SIZE, *hidden, outputs)
        return tuple(
            Layer(
                scale * rng.standard_normal((after, before), dtype=np.float32),
                scale * rng.standard_normal(after, dtype=np.float32),
            )
            for before, after in zip(sizes[:-1], sizes[1:], strict=True)
        )

    networks = tuple(Network(policy=chain(len(grid)), value=chain(1)) for _ in range(members))
    return LearnedPolicy(networks, action_grid=grid, **settings)


def _plain(name: str, value: Array) -> Numeric:
    """Return a float for a single run; the cost curve stays an array."""
    array = np.asarray(value, dtype=np.float64)
    return array if name == "step_cost_curve" or array.ndim else array.item()
