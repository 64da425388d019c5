"""Averages over the chunks of a run: what the encoder remembers from one chunk to the next."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation import size_statistics, trend
from rlbatch.signals.elementwise import fmax, fmin, isfinite, isnan, maximum, number, spread, where
from rlbatch.signals.record import Array, Signals

NOISE_DECAY = 0.7  # a chunk: with the default cadence a chunk is about a tenth of the run so far
RATE_DECAY = 0.6
TINY = 1e-30

_ZERO: Array = np.zeros(())[()]  # a number as NumPy's others are


class EncoderState(NamedTuple):
    """Averages over the chunks so far; every entry is an array with the runs' leading axes."""

    chunks: Array
    initial_loss: Array
    last_loss: Array
    last_loss_var: Array
    sample_var: Array  # of one sample's loss: decayed sum; divide by `sample_var_weight`
    sample_var_weight: Array  # degrees of freedom in it
    lowest_loss: Array
    grad_sqr: Array  # decayed sums; divide by `noise_weight`
    grad_sqr_var: Array
    noise_trace: Array
    noise_weight: Array
    noise_fast: Array  # log2 of the last chunk's own noise scale
    cosine: Array
    gradient_level: Array
    rate: Array  # decayed log-loss decrease
    rate_cost: Array  # decayed log-cost growth
    previous_size_rate: Array  # decrease per cost at the size before the last change
    current_size_rate: Array
    actual_decrease: Array
    predicted_decrease: Array
    last_size: Array
    last_change: Array
    since_change: Array
    largest: Array
    smallest: Array
    last_cost: Array
    one_sample_var: Array
    fast_loss: Array  # see `rlbatch.observation.trend`; each sum beside its weight
    fast_weight: Array
    slow_loss: Array
    slow_weight: Array
    size_cost: Array
    size_cost_weight: Array
    rate_weight: Array
    rate_size: Array
    rate_sum: Array
    rate_size_sqr: Array
    rate_product: Array
    last_val: Array
    lowest_val: Array
    val_cost: Array  # cost of the run at that validation
    val_size: Array  # cost-weighted sum of log2 size since then
    val_rate: Array  # decayed log-loss decrease between validations, and log-cost growth
    val_growth: Array
    kept_loss: Array  # training loss of the last chunk that was not rolled back, and its variance
    kept_loss_var: Array
    size_rates: Array  # see `size_statistics`; these two have a last axis of sizes
    size_weights: Array


_UNSET = frozenset(
    (
        *("initial_loss", "last_loss", "lowest_loss", "kept_loss", "last_val", "lowest_val"),
        *("noise_fast", "gradient_level", "previous_size_rate", "current_size_rate"),
        *("last_size", "largest", "smallest"),
    )
)
"""Entries that are NaN before they are first seen; the others begin at 0."""

_TABLES = frozenset(("size_rates", "size_weights"))


def initial_state(shape: tuple[int, ...] = ()) -> EncoderState:
    """Return the state before the first chunk, for runs with these leading axes."""

    def initial(name: str) -> Array:
        if name in _TABLES:
            return np.zeros((*shape, size_statistics.TABLE_SIZES))
        return (np.full(shape, np.nan) if name in _UNSET else np.zeros(shape))[()]

    return EncoderState(**{name: initial(name) for name in EncoderState._fields})


def as_numbers(state: EncoderState) -> EncoderState:
    """Return a single run's state, as it may come from a checkpoint, with scalars for numbers."""
    if state.chunks.__class__ is np.float64 or np.ndim(state.chunks):
        return state
    return EncoderState(*(number(value) for value in state))


class _Chunk(NamedTuple):
    """What several averages need of a chunk."""

    size: Array  # log2 of its batch size
    first: NDArray[np.bool_]  # no loss was seen before it
    loss: Array  # of the chunk, or the last one known
    seen: NDArray[np.bool_]  # it has a loss of its own
    decrease: Array  # of log loss, and the growth of log cost
    cost_growth: Array


def advance(signals: Signals, state: EncoderState) -> EncoderState:
    """Return the state after a chunk, for arrays with free leading axes."""
    chunk = _chunk(signals, state)
    sample_var, var_weight, one_sample = _one_sample_variance(signals, state, chunk)
    loss_var = one_sample / (signals.batch_size * maximum(signals.steps, 1))
    loss, decrease, cost_growth = chunk.loss, chunk.decrease, chunk.cost_growth
    return EncoderState(
        chunks=state.chunks + 1,
        initial_loss=where(chunk.first, loss, state.initial_loss),
        last_loss=loss,
        last_loss_var=loss_var,
        sample_var=sample_var,
        sample_var_weight=var_weight,
        lowest_loss=fmin(state.lowest_loss, loss),
        rate=RATE_DECAY * state.rate + decrease,
        rate_cost=RATE_DECAY * state.rate_cost + cost_growth,
        last_cost=number(signals.total_cost),
        **_noise_state(signals, state),
        **_size_state(signals, state, chunk),
        **_prediction_state(signals, state, chunk),
        **_trend_state(signals, state, chunk, one_sample, loss_var),
        **_size_statistics_state(signals, state, chunk, loss_var),
    )


def _chunk(signals: Signals, state: EncoderState) -> _Chunk:
    loss = number(signals.train_loss)
    seen = isfinite(loss) & (loss > 0)
    loss = where(seen, loss, state.last_loss)
    first = isnan(state.initial_loss)
    decrease = where(first, 0.0, np.log(state.last_loss / loss))
    growth = np.log(number(signals.total_cost) / maximum(state.last_cost, TINY))
    size = spread(np.log2(signals.batch_size), loss)
    return _Chunk(size, first, loss, seen, finite(decrease), where(first, 0.0, growth))


def _one_sample_variance(
    signals: Signals, state: EncoderState, chunk: _Chunk
) -> tuple[Array, Array, Array]:
    """Return the decayed sum of variances of one sample's loss, its weight, and the variance."""
    # Batch means tell how one sample's loss varies. Chunks of a single step say nothing about it,
    # so it is pooled over chunks; before the first longer one, it is taken to vary by its own size.
    freedom = where(chunk.seen, maximum(number(signals.steps) - 1.0, 0.0), 0.0)
    std = finite(signals.train_loss_std)
    spread = std * std * signals.batch_size
    sample_var = NOISE_DECAY * state.sample_var + freedom * spread
    weight = NOISE_DECAY * state.sample_var_weight + freedom
    pooled = sample_var / maximum(weight, TINY)
    return sample_var, weight, where(weight > 0.5, pooled, chunk.loss * chunk.loss)


def _noise_state(signals: Signals, state: EncoderState) -> dict[str, Array]:
    grad_sqr, trace = number(signals.grad_sqr), number(signals.noise_trace)
    measured = isfinite(grad_sqr) & isfinite(trace)
    decay = where(measured, NOISE_DECAY, 1.0)
    grad_se = where(isfinite(signals.grad_sqr_se), signals.grad_sqr_se, abs(grad_sqr))
    level = maximum(grad_sqr, 0.0) + finite(trace) / signals.batch_size
    before = state.gradient_level
    level = where(isnan(before), level, 0.5 * (before + level))
    scale = np.log2(maximum(trace, TINY) / grad_sqr)
    cosine = signals.gradient_cosine
    return {
        "grad_sqr": decay * state.grad_sqr + where(measured, grad_sqr, 0.0),
        "grad_sqr_var": decay * decay * state.grad_sqr_var
        + where(measured, grad_se * grad_se, 0.0),
        "noise_trace": decay * state.noise_trace + where(measured, trace, 0.0),
        "noise_weight": decay * state.noise_weight + measured,
        "noise_fast": where(measured & (grad_sqr > 0), scale, state.noise_fast),
        "cosine": where(isfinite(cosine), cosine, state.cosine),
        "gradient_level": where(measured, level, before),
    }


def _size_state(signals: Signals, state: EncoderState, chunk: _Chunk) -> dict[str, Array]:
    size, unknown = chunk.size, isnan(state.last_size)
    changed = ~unknown & (abs(size - state.last_size) > 1e-9)
    change = where(unknown, 0.0, size - state.last_size)
    rate, known = chunk.decrease / maximum(signals.chunk_cost, TINY), state.current_size_rate
    return {
        "previous_size_rate": where(changed, known, state.previous_size_rate),
        "current_size_rate": where(isnan(known) | changed, rate, 0.5 * (known + rate)),
        "last_size": size,
        "last_change": where(changed, change, 0.0),
        "since_change": where(changed, 0.0, state.since_change + 1),
        "largest": fmax(state.largest, size),
        "smallest": fmin(state.smallest, size),
    }


def _prediction_state(signals: Signals, state: EncoderState, chunk: _Chunk) -> dict[str, Array]:
    actual = where(chunk.first, 0.0, state.last_loss - chunk.loss)
    predicted = number(signals.predicted_decrease)
    known = isfinite(predicted) & ~chunk.first
    return {
        "actual_decrease": RATE_DECAY * state.actual_decrease + where(known, finite(actual), 0.0),
        "predicted_decrease": RATE_DECAY * state.predicted_decrease + where(known, predicted, 0.0),
    }


def _trend_state(
    signals: Signals, state: EncoderState, chunk: _Chunk, one_sample: Array, loss_var: Array
) -> dict[str, Array]:
    size, loss = chunk.size, chunk.loss
    samples = signals.batch_size * maximum(signals.steps, 1)
    seen = isfinite(loss)
    samples, level = where(seen, samples, 0.0), where(seen, loss, 0.0)
    fast = trend.add(state.fast_loss, state.fast_weight, level, samples, trend.FAST_DECAY)
    slow = trend.add(state.slow_loss, state.slow_weight, level, samples, trend.SLOW_DECAY)
    cost = spread(number(signals.chunk_cost), loss)
    sizes = trend.add(state.size_cost, state.size_cost_weight, size, cost, trend.SLOW_DECAY)
    variance = finite((loss_var + state.last_loss_var) / (loss * loss))
    rate, precision = trend.rate_and_precision(chunk.decrease, chunk.cost_growth, variance)
    precision = where(isnan(state.initial_loss) | ~seen, 0.0, precision)
    decay = trend.RATE_DECAY
    return {
        "one_sample_var": one_sample,
        "fast_loss": fast[0],
        "fast_weight": fast[1],
        "slow_loss": slow[0],
        "slow_weight": slow[1],
        "size_cost": sizes[0],
        "size_cost_weight": sizes[1],
        "rate_weight": decay * state.rate_weight + precision,
        "rate_size": decay * state.rate_size + precision * size,
        "rate_sum": decay * state.rate_sum + precision * rate,
        "rate_size_sqr": decay * state.rate_size_sqr + precision * (size * size),
        "rate_product": decay * state.rate_product + precision * size * rate,
    }


def _size_statistics_state(
    signals: Signals, state: EncoderState, chunk: _Chunk, loss_var: Array
) -> dict[str, Array]:
    size, loss = chunk.size, chunk.loss
    kept = (number(signals.rolled_back) < 0.5) & isfinite(loss)
    # Progress since the last chunk that was kept: what follows a rolled-back one gained nothing.
    decrease = np.log(state.kept_loss / loss)
    variance = (loss_var + state.kept_loss_var) / (loss * loss)
    rate, precision = trend.rate_and_precision(decrease, chunk.cost_growth, variance)
    precision = where(isfinite(decrease), precision, 0.0)
    decayed = size_statistics.DECAY * state.size_rates, size_statistics.DECAY * state.size_weights
    table = size_statistics.note(decayed, size, rate, precision)

    val, total = number(signals.val_loss), number(signals.total_cost)
    validated = isfinite(val) & (val > 0)
    mean_size = state.val_size + size * number(signals.chunk_cost)
    again = validated & isfinite(state.last_val)
    val_decrease = where(again, np.log(state.last_val / val), 0.0)
    val_growth = where(again, np.log(total / state.val_cost), 0.0)
    rate, precision = trend.rate_and_precision(
        val_decrease, val_growth, spread(size_statistics.VALIDATION_VARIANCE, loss)
    )
    place = mean_size / maximum(total - state.val_cost, TINY)
    table = size_statistics.note(table, place, rate, where(again, precision, 0.0))
    decay = where(again, RATE_DECAY, 1.0)
    return {
        "last_val": where(validated, val, state.last_val),
        "lowest_val": where(validated, fmin(state.lowest_val, val), state.lowest_val),
        "val_cost": where(validated, total, state.val_cost),
        "val_size": where(validated, 0.0, mean_size),
        "val_rate": decay * state.val_rate + val_decrease,
        "val_growth": decay * state.val_growth + val_growth,
        "kept_loss": where(kept, loss, state.kept_loss),
        "kept_loss_var": where(kept, loss_var, state.kept_loss_var),
        "size_rates": table[0],
        "size_weights": table[1],
    }


def finite(value: float | Array) -> Array:
    """Return the value, 0 where it is not finite."""
    given = number(value)
    if given.__class__ is np.float64:
        return given if math.isfinite(given) else _ZERO
    return where(isfinite(given), given, 0.0)
