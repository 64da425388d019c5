"""Random inputs for tests: signals as wild as they may be, policies with random weights."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE, encode, initial_state
from rlbatch.policy.base import Observation
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from rlbatch.signals.record import COST_CURVE_SIZES, Array, Numeric, RunContext, Signals

MAY_BE_MISSING = (
    *("train_loss", "train_loss_std", "val_loss", "grad_sqr", "grad_sqr_se", "noise_trace"),
    *("noise_trace_se", "gradient_cosine", "predicted_decrease"),
)
"""Fields of `Signals` that are NaN when they were not measured."""


def simple_signals(**changes: Any) -> Signals:
    """Return one run's signals with round numbers, for examples that are computed by hand.

    Batch size 64 (also the base) in [1, 65536], chunks of 10 steps, SGD at learning rate 0.1
    without coupling, training loss 1, |G|^2 = 1, tr(Sigma) = 64, cost 1 + B / 64 a step.

    Args:
        changes: Fields of `Signals` or of `RunContext` to set otherwise; arrays make several runs.
    """
    constants: dict[str, Any] = {
        **{"base_batch_size": 64.0, "min_batch_size": 1.0, "max_batch_size": 65536.0},
        **{"dataset_size": 6400.0, "learning_rate": 0.1, "momentum": 0.0, "adaptive": 0.0},
        **{"coupling_exponent": 0.0, "adascale": 0.0, "target_loss": 0.1, "budget": np.nan},
        **{"weight_seconds": 1.0, "weight_samples": 0.0, "weight_joules": 0.0},
        "planned_samples": np.nan,
    }
    values: dict[str, Any] = {
        **{"batch_size": 64.0, "steps": 10.0, "total_steps": 10.0, "total_samples": 640.0},
        **{"chunk_cost": 20.0, "total_cost": 20.0, "train_loss": 1.0, "train_loss_std": 0.1},
        **{"val_loss": np.nan, "grad_sqr": 1.0, "grad_sqr_se": 0.1, "noise_trace": 64.0},
        **{"noise_trace_se": 6.4, "gradient_cosine": 1.0 / 3.0, "predicted_decrease": 1.0},
        **{"learning_rate_factor": 1.0, "schedule_factor": 1.0, "step_cost_known": 1.0},
        **{"step_cost_curve": np.log2(1.0 + COST_CURVE_SIZES / 64.0)},
        **{"nonfinite_steps": 0.0, "rolled_back": 0.0},
    }
    unknown = changes.keys() - constants.keys() - values.keys()
    if unknown:
        raise ConfigurationError(f"Signals and RunContext have no field {sorted(unknown)}.")
    constants |= {name: value for name, value in changes.items() if name in constants}
    values |= {name: value for name, value in changes.items() if name in values}
    return Signals(context=RunContext(**constants), **values)


def random_signals(
    shape: tuple[int, ...], rng: np.random.Generator, missing: float = 0.2
) -> Signals:
    """Return legal signals over many orders of magnitude.

    Args:
        shape: Leading axes; `()` gives one run with plain floats.
        rng: Source of randomness.
        missing: Probability with which each value that may be missing is NaN.
    """
    context = random_context(shape, rng)
    low, high = np.log2(context.min_batch_size), np.log2(context.max_batch_size)
    values = _random_measurements(shape, rng)
    values["batch_size"] = np.round(2.0 ** (low + (high - low) * rng.uniform(0, 1, shape)))
    for name in MAY_BE_MISSING:
        values[name] = np.where(rng.uniform(0, 1, shape) < missing, np.nan, values[name])
    curve = values.pop("step_cost_curve")
    return Signals(context=context, step_cost_curve=curve, **_plain(values))


def random_run(
    shape: tuple[int, ...], rng: np.random.Generator, chunks: int, missing: float = 0.2
) -> list[tuple[Observation, Signals]]:
    """Return the observations and signals of runs that share only their constants and counters.

    Batch sizes, losses and gradients jump from chunk to chunk as no real run does.

    Args:
        shape: Leading axes; `()` gives one run.
        rng: Source of randomness.
        chunks: Length of the runs.
        missing: As in `random_signals`.
    """
    context = random_context(shape, rng)
    state = initial_state(shape)
    low, high = np.log2(context.min_batch_size), np.log2(context.max_batch_size)
    totals = dict.fromkeys(("total_steps", "total_samples", "total_cost"), np.zeros(shape))
    run: list[tuple[Observation, Signals]] = []
    for _ in range(chunks):
        chunk = random_signals(shape, rng, missing)
        size = np.round(2.0 ** (low + (high - low) * rng.uniform(0, 1, shape)))
        totals["total_steps"] = totals["total_steps"] + chunk.steps
        totals["total_samples"] = totals["total_samples"] + chunk.steps * size
        totals["total_cost"] = totals["total_cost"] + chunk.chunk_cost
        chunk = replace(chunk, context=context, **_plain({"batch_size": size, **totals}))
        encoded, state = encode(chunk, state)
        run.append((encoded, chunk))
    return run


def random_context(shape: tuple[int, ...], rng: np.random.Generator) -> RunContext:
    """Return legal constants of a run: half have a target, others a budget or planned samples."""
    smallest = np.exp2(rng.integers(0, 6, shape))
    base = smallest * np.exp2(rng.integers(0, 6, shape))
    coupling = rng.integers(0, 4, shape)
    aim = rng.uniform(size=shape)
    has_target, has_budget = aim < 0.5, (aim >= 0.5) & (aim < 0.75)
    weights = rng.dirichlet(np.ones(3), shape)
    values: dict[str, Array] = {
        "base_batch_size": base,
        "min_batch_size": smallest,
        "max_batch_size": base * np.exp2(rng.integers(0, 7, shape)),
        "dataset_size": np.asarray(np.round(10.0 ** rng.uniform(2, 7, shape))),
        "learning_rate": 10.0 ** rng.uniform(-5, 1, shape),
        "momentum": rng.choice([0.0, 0.9, 0.99], shape),
        "adaptive": rng.integers(0, 2, shape).astype(np.float64),
        "coupling_exponent": np.asarray([0.0, 0.5, 1.0, 1.0])[coupling],
        "adascale": (coupling == 3).astype(np.float64),
        "target_loss": np.where(has_target, 10.0 ** rng.uniform(-6, 6, shape), np.nan),
        "budget": np.where(has_budget, 10.0 ** rng.uniform(4, 8, shape), np.nan),
        "weight_seconds": weights[..., 0],
        "weight_samples": weights[..., 1],
        "weight_joules": weights[..., 2],
        "planned_samples": np.where(aim >= 0.75, 10.0 ** rng.uniform(2, 8, shape), np.nan),
    }
    return RunContext(**_plain(values))


def one_run(signals: Signals, index: tuple[int, ...]) -> Signals:
    """Return the signals of one run, with plain floats, out of an array of runs."""

    def pick(record: Any) -> dict[str, Numeric]:
        names = {field.name for field in fields(record)} - {"context", "step_cost_curve"}
        return _plain({name: np.asarray(getattr(record, name))[index] for name in names})

    curve = np.asarray(signals.step_cost_curve)[index]
    context = RunContext(**pick(signals.context))
    return replace(signals, context=context, step_cost_curve=curve, **pick(signals))


def random_policy(
    rng: np.random.Generator,
    hidden: tuple[int, ...] = (16, 8),
    members: int = 1,
    scale: float = 1.0,
    activations: tuple[str, ...] = ("tanh",),
    **settings: Any,
) -> LearnedPolicy:
    """Return a learned policy with random weights.

    Args:
        rng: Source of the weights.
        hidden: Sizes of the hidden layers of both nets.
        members: Networks in the ensemble.
        scale: Factor on the weights; large ones give confident policies.
        activations: Of the members, in turn.
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
            for before, after in pairwise(sizes)
        )

    networks = tuple(
        Network(chain(len(grid)), chain(1), activations[number % len(activations)])
        for number in range(members)
    )
    return LearnedPolicy(networks, action_grid=grid, **settings)


def _random_measurements(shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Array]:
    def between(low: float, high: float) -> Array:
        return rng.uniform(low, high, shape)

    def powers_of_ten(low: float, high: float) -> Array:
        return 10.0 ** between(low, high)

    steps = np.round(powers_of_ten(0, 3))
    loss = powers_of_ten(-6, 6)
    floor, slope = powers_of_ten(-4, 2)[..., None], powers_of_ten(-6, 0)[..., None]
    return {
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
        "step_cost_curve": np.log2(floor + slope * COST_CURVE_SIZES),
        "step_cost_known": between(0, 1),
        "nonfinite_steps": np.round(steps * between(0, 1) * (between(0, 1) < 0.1)),
        "rolled_back": np.round(between(0, 0.6)),
    }


def _plain(values: dict[str, Array]) -> dict[str, Numeric]:
    """Return floats for a single run, arrays otherwise."""
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    return {name: array if array.ndim else array.item() for name, array in arrays.items()}
