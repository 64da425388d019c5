"""What simulated runs show of a chunk: measurements with their noise, as of live runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.guard import ChunkLosses
from rlbatch.observation import step_cost_at
from rlbatch.signals.record import Signals

if TYPE_CHECKING:
    from rlbatch.envs.simulator.runs import QuadraticRuns

_TINY = 1e-30
_SAMPLE_SPREAD = 2.0  # variance of the samples' squared gradient norms, over their mean's square


def measure(
    runs: QuadraticRuns, batch_size: Array, count: Array, precondition: Array | float
) -> tuple[Array, ...]:
    """Gradient statistics as the samples' gradients would show them.

    Variances: Var(G2) = 4 G'SG / B + 2 tr(S^2) k / ((k - 1) B^2) with k = B samples, tr(S^2) =
    tr(S)^2 / n_eff and G'SG = |G|^2 tr(S) / n_eff; the trace is a mean over B samples.
    """
    t, n = runs.tasks, len(runs.tasks)
    squared, trace = runs.gradient_norm(precondition), runs.noise_trace(precondition)
    measured = np.maximum(count, 1.0)
    dimension = t.effective_dimension
    grad_se = np.sqrt(
        (
            4 * squared * trace / batch_size
            + 2 * np.square(trace) / (batch_size * np.maximum(batch_size - 1.0, 1.0))
        )
        / dimension
        / measured
    )
    variance = 2.0 / dimension / np.maximum(batch_size - 1.0, 1.0) + _SAMPLE_SPREAD / batch_size
    trace_se = trace * np.sqrt(variance / measured)
    draws = runs.rng.standard_normal((4, n))
    spread = np.exp(0.3 * draws[3])  # the standard error is itself estimated from a few steps
    cosine = 1.0 / (1.0 + 2.0 * trace / np.maximum(squared, _TINY) / batch_size)
    cosine = np.clip(cosine + draws[2] * (1.0 - cosine) / np.sqrt(dimension * measured), -1.0, 1.0)
    values = (
        squared + grad_se * draws[0],
        grad_se * spread,
        np.maximum(trace + trace_se * draws[1], 0.01 * trace),
        trace_se * spread,
        cosine,
    )
    return tuple(np.where(count > 0, value, np.nan) for value in values)


def training_losses(
    runs: QuadraticRuns,
    batch_size: Array,
    steps: Array,
    exploded: Array,
    level: Array,
    loss_before: Array,
) -> ChunkLosses:
    """What a live run would have measured of the chunk's losses.

    Args:
        runs: The runs, after the chunk.
        batch_size: Of the chunks.
        steps: Of the chunks.
        exploded: Where the step size was fatal. No closed form says how far such a chunk gets;
            four times the loss before it stands for that.
        level: Noise-free mean training loss.
        loss_before: Of the chunks, per bin.
    """
    t, n = runs.tasks, len(runs.tasks)
    before = t.irreducible + loss_before.sum(axis=1)
    level = np.where(exploded, before, level)
    draws = np.zeros((2, n)) if runs.exact else runs.rng.standard_normal((2, n))
    noise = t.loss_noise * level / np.sqrt(batch_size)
    mean = np.maximum(level + noise / np.sqrt(steps) * draws[0], 0.02 * level)
    spread = noise * np.exp(draws[1] / np.sqrt(2.0 * np.maximum(steps, 2)))
    return ChunkLosses(
        batch_size=batch_size,
        steps=steps,
        mean=np.where(exploded, 4.0 * before, mean),
        std=np.where(steps > 1, spread, 0.0),
        exploded=exploded,
        changed=batch_size != runs.batch_size,
    )


def chunk_signals(
    runs: QuadraticRuns,
    losses: ChunkLosses,
    cost: Array,
    factor: Array,
    schedule: Array,
    undone: Array,
    validation: Array,
    statistics: tuple[Array, ...] | None,
) -> Signals:
    """Return what live runs would have measured, `statistics` being those of the gradients."""
    t, n = runs.tasks, len(runs.tasks)
    if statistics is None:
        statistics = (np.full(n, np.nan),) * 5
    inertia = np.where(t.adaptive > 0, 1.0, 1.0 - t.momentum)
    known = _costs_known(runs)
    predicted = losses.steps * runs.step_size * factor * schedule / inertia * statistics[0]
    return Signals(
        context=runs.context(),
        batch_size=losses.batch_size,
        steps=losses.steps,
        total_steps=runs.steps.copy(),
        total_samples=runs.samples.copy(),
        chunk_cost=cost,
        total_cost=runs.cost.copy(),
        train_loss=losses.mean,
        train_loss_std=losses.std,
        val_loss=_seen_validation(runs, validation),
        grad_sqr=statistics[0],
        grad_sqr_se=statistics[1],
        noise_trace=statistics[2],
        noise_trace_se=statistics[3],
        gradient_cosine=statistics[4],
        predicted_decrease=predicted,
        learning_rate_factor=factor,
        schedule_factor=schedule,
        step_cost_curve=_believed_cost_curve(runs, losses.batch_size, known),
        step_cost_known=known,
        nonfinite_steps=np.zeros(n),
        rolled_back=undone.astype(np.float64),
    )


def _seen_validation(runs: QuadraticRuns, validation: Array) -> Array:
    """The validation loss with its noise; NaN where a policy does not see it."""
    t, n = runs.tasks, len(runs.tasks)
    noise = np.zeros(n) if runs.exact else runs.rng.standard_normal(n)
    return np.where(t.sees_validation > 0, validation * (1.0 + t.validation_noise * noise), np.nan)


def _costs_known(runs: QuadraticRuns) -> Array:
    """How far the costs at other sizes are known: from the start, or from sizes tried so far."""
    tried = np.log2(runs.largest_size / runs.smallest_size)
    return np.maximum(runs.tasks.cost_known, np.minimum(tried / 2.0, 1.0))


def _believed_cost_curve(runs: QuadraticRuns, batch_size: Array, known: Array) -> Array:
    """The true curve, blended with a prior (knee at the current size) while not known."""
    t = runs.tasks
    sizes = np.log2(
        1.0 + 2.0 ** (np.arange(t.step_cost_curve.shape[1]) - np.log2(batch_size)[:, None])
    )
    prior = sizes - 1.0 + step_cost_at(t.step_cost_curve, np.log2(batch_size))[:, None]
    return known[:, None] * t.step_cost_curve + (1.0 - known)[:, None] * prior
