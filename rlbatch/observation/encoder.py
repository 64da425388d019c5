"""The one encoder: a chunk's signals become the bounded, scale-free vector that a policy sees.

The same function serves a live run, the live environment and the vectorised simulator: it is
written on arrays whose leading axes are free. A policy trained in simulation can be deployed only
because of that.

Nothing here depends on the unit of the loss, of the gradient or of the cost: only ratios, fractions
and cosines enter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation import size_statistics, trend
from rlbatch.signals.record import COST_CURVE_SIZES, Array, RunContext, Signals

SCHEMA_VERSION = 3

GROUPS: dict[str, tuple[str, ...]] = {
    "place": (
        "size_vs_base",
        "size",
        "room_up",
        "room_down",
        "epoch_steps",
        "epochs_done",
        "steps_done",
    ),
    "learning_rate": (
        "coupling",
        "adascale",
        "rate_factor",
        "schedule_factor",
        "adaptive",
        "momentum",
    ),
    "cost": (
        "elasticity_/16",
        "elasticity_/4",
        "elasticity_/2",
        "elasticity_x2",
        "elasticity_x4",
        "elasticity_x16",
        "cost_known",
    ),
    "noise": (
        "efficiency",
        "noise_vs_size",
        "noise_known",
        "cosine",
        "noise_trend",
        "goodput_step",
    ),
    "loss": (
        "loss_vs_initial",
        "loss_vs_target",
        "val_vs_target",
        "val_gap",
        "val_known",
        "decrease",
        "decrease_significance",
        "decrease_rate",
        "remaining",
        "loss_noise",
        "rise",
    ),
    "trend": (
        "trend",
        "trend_significance",
        "recent_vs_target",
        "recent_remaining",
        "mean_size",
        "size_slope",
        "size_slope_significance",
        "chunk_share",
    ),
    "progress": ("progress_ratio", "gradient_growth", "trouble", "rate_change"),
    "history": ("last_change", "since_change", "explored_up", "explored_down"),
    "validation": ("val_decrease", "val_trend", "val_remaining", "val_rise"),
    "experience": (
        *("rate_/8", "rate_/4", "rate_/2", "rate_here", "rate_x2", "rate_x4", "rate_x8"),
        *("known_/8", "known_/4", "known_/2", "known_here", "known_x2", "known_x4", "known_x8"),
    ),
    "objective": ("budget_run", "spent", "weight_seconds", "weight_samples", "weight_joules"),
    "plan": ("plan_known", "plan_done", "plan_left"),
}
"""Names of the features by group, in the order of the vector."""

OBSERVATION_NAMES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
OBSERVATION_SIZE = len(OBSERVATION_NAMES)

_NOISE_DECAY = 0.7  # a chunk: with the default cadence a chunk is about a tenth of the run so far
_RATE_DECAY = 0.6
_TINY = 1e-30
_SHIFTS: Array = np.array([0.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0])  # of log2 size, where costs count


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


def initial_state(shape: tuple[int, ...] = ()) -> EncoderState:
    """Return the state before the first chunk, for runs with these leading axes."""
    zero = np.zeros(shape)
    unset = np.full(shape, np.nan)
    return EncoderState(
        chunks=zero,
        initial_loss=unset,
        last_loss=unset,
        last_loss_var=zero,
        sample_var=zero,
        sample_var_weight=zero,
        lowest_loss=unset,
        grad_sqr=zero,
        grad_sqr_var=zero,
        noise_trace=zero,
        noise_weight=zero,
        noise_fast=unset,
        cosine=zero,
        gradient_level=unset,
        rate=zero,
        rate_cost=zero,
        previous_size_rate=unset,
        current_size_rate=unset,
        actual_decrease=zero,
        predicted_decrease=zero,
        last_size=unset,
        last_change=zero,
        since_change=zero,
        largest=unset,
        smallest=unset,
        last_cost=zero,
        one_sample_var=zero,
        fast_loss=zero,
        fast_weight=zero,
        slow_loss=zero,
        slow_weight=zero,
        size_cost=zero,
        size_cost_weight=zero,
        rate_weight=zero,
        rate_size=zero,
        rate_sum=zero,
        rate_size_sqr=zero,
        rate_product=zero,
        last_val=unset,
        lowest_val=unset,
        val_cost=zero,
        val_size=zero,
        val_rate=zero,
        val_growth=zero,
        kept_loss=unset,
        kept_loss_var=zero,
        size_rates=np.zeros((*shape, size_statistics.TABLE_SIZES)),
        size_weights=np.zeros((*shape, size_statistics.TABLE_SIZES)),
    )


def encode(signals: Signals, state: EncoderState) -> tuple[NDArray[np.float32], EncoderState]:
    """Return the observation after a chunk, and the next state.

    Args:
        signals: The chunk's measurements, each a float or an array with the same leading axes.
        state: What the previous call (or `initial_state`) returned.

    Returns:
        The observation, float32 of shape (..., OBSERVATION_SIZE), finite and within [-1, 1]; and
        the next state.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        after = _advance(signals, state)
        features = _features(signals, state, after)
        shape = np.broadcast_shapes(np.shape(after.last_size), np.shape(after.chunks))
        observation = np.empty((*shape, len(features)), dtype=np.float32)
        for index, feature in enumerate(features):
            observation[..., index] = feature
    np.clip(observation, -1.0, 1.0, out=observation)
    observation[np.isnan(observation)] = 0.0
    return observation, after


def _advance(signals: Signals, state: EncoderState) -> EncoderState:
    loss = _as_array(signals.train_loss)
    good = np.isfinite(loss) & (loss > 0)
    loss = np.where(good, loss, state.last_loss)
    first = np.isnan(state.initial_loss)
    # Batch means tell how one sample's loss varies. Chunks of a single step say nothing about it,
    # so it is pooled over chunks; before the first longer one, it is taken to vary by its own size.
    freedom = np.where(good, np.maximum(_as_array(signals.steps) - 1.0, 0.0), 0.0)
    spread = np.square(_finite(signals.train_loss_std)) * signals.batch_size
    sample_var = _NOISE_DECAY * state.sample_var + freedom * spread
    var_weight = _NOISE_DECAY * state.sample_var_weight + freedom
    one_sample = np.where(var_weight > 0.5, sample_var / np.maximum(var_weight, _TINY), loss**2)
    loss_var = one_sample / (signals.batch_size * np.maximum(signals.steps, 1))

    size = np.log2(signals.batch_size)
    changed = ~np.isnan(state.last_size) & (np.abs(size - state.last_size) > 1e-9)
    change = np.where(np.isnan(state.last_size), 0.0, size - state.last_size)

    decrease = np.where(first, 0.0, np.log(state.last_loss / loss))
    decrease = _finite(decrease)
    cost_growth = np.where(
        first, 0.0, np.log(_as_array(signals.total_cost) / np.maximum(state.last_cost, _TINY))
    )
    cost_rate = decrease / np.maximum(signals.chunk_cost, _TINY)
    current = np.where(
        np.isnan(state.current_size_rate) | changed,
        cost_rate,
        0.5 * (state.current_size_rate + cost_rate),
    )

    grad_sqr, trace = _as_array(signals.grad_sqr), _as_array(signals.noise_trace)
    measured = np.isfinite(grad_sqr) & np.isfinite(trace)
    decay = np.where(measured, _NOISE_DECAY, 1.0)
    grad_se = np.where(np.isfinite(signals.grad_sqr_se), signals.grad_sqr_se, np.abs(grad_sqr))
    level = np.maximum(grad_sqr, 0.0) + _finite(trace) / signals.batch_size
    actual = np.where(first, 0.0, state.last_loss - loss)
    predicted = _as_array(signals.predicted_decrease)
    has_prediction = np.isfinite(predicted) & ~first

    return EncoderState(
        chunks=state.chunks + 1,
        initial_loss=np.where(first, loss, state.initial_loss),
        last_loss=loss,
        last_loss_var=loss_var,
        sample_var=sample_var,
        sample_var_weight=var_weight,
        lowest_loss=np.fmin(state.lowest_loss, loss),
        grad_sqr=decay * state.grad_sqr + np.where(measured, grad_sqr, 0.0),
        grad_sqr_var=decay**2 * state.grad_sqr_var + np.where(measured, np.square(grad_se), 0.0),
        noise_trace=decay * state.noise_trace + np.where(measured, trace, 0.0),
        noise_weight=decay * state.noise_weight + measured,
        noise_fast=np.where(
            measured & (grad_sqr > 0),
            np.log2(np.maximum(trace, _TINY) / grad_sqr),
            state.noise_fast,
        ),
        cosine=np.where(
            np.isfinite(signals.gradient_cosine), signals.gradient_cosine, state.cosine
        ),
        gradient_level=np.where(
            measured,
            np.where(np.isnan(state.gradient_level), level, 0.5 * (state.gradient_level + level)),
            state.gradient_level,
        ),
        rate=_RATE_DECAY * state.rate + decrease,
        rate_cost=_RATE_DECAY * state.rate_cost + cost_growth,
        previous_size_rate=np.where(changed, state.current_size_rate, state.previous_size_rate),
        current_size_rate=current,
        actual_decrease=_RATE_DECAY * state.actual_decrease
        + np.where(has_prediction, _finite(actual), 0.0),
        predicted_decrease=_RATE_DECAY * state.predicted_decrease
        + np.where(has_prediction, predicted, 0.0),
        last_size=size + np.zeros_like(loss),
        last_change=np.where(changed, change, 0.0),
        since_change=np.where(changed, 0.0, state.since_change + 1),
        largest=np.fmax(state.largest, size),
        smallest=np.fmin(state.smallest, size),
        last_cost=_as_array(signals.total_cost),
        **_trend_state(signals, state, loss, one_sample, loss_var, decrease, cost_growth),
        **_size_statistics_state(signals, state, loss, loss_var, cost_growth),
    )


def _trend_state(
    signals: Signals,
    state: EncoderState,
    loss: Array,
    one_sample: Array,
    loss_var: Array,
    decrease: Array,
    cost_growth: Array,
) -> dict[str, Array]:
    size = np.log2(signals.batch_size) + np.zeros_like(loss)
    samples = signals.batch_size * np.maximum(signals.steps, 1)
    seen = np.isfinite(loss)
    samples, level = np.where(seen, samples, 0.0), np.where(seen, loss, 0.0)
    fast = trend.add(state.fast_loss, state.fast_weight, level, samples, trend.FAST_DECAY)
    slow = trend.add(state.slow_loss, state.slow_weight, level, samples, trend.SLOW_DECAY)
    cost = _as_array(signals.chunk_cost) + np.zeros_like(loss)
    sizes = trend.add(state.size_cost, state.size_cost_weight, size, cost, trend.SLOW_DECAY)
    variance = _finite((loss_var + state.last_loss_var) / np.square(loss))
    rate, precision = trend.rate_and_precision(decrease, cost_growth, variance)
    precision = np.where(np.isnan(state.initial_loss) | ~seen, 0.0, precision)
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
        "rate_size_sqr": decay * state.rate_size_sqr + precision * size**2,
        "rate_product": decay * state.rate_product + precision * size * rate,
    }


def _size_statistics_state(
    signals: Signals, state: EncoderState, loss: Array, loss_var: Array, cost_growth: Array
) -> dict[str, Array]:
    size = np.log2(signals.batch_size) + np.zeros_like(loss)
    kept = (_as_array(signals.rolled_back) < 0.5) & np.isfinite(loss)
    # Progress since the last chunk that was kept: what follows a rolled-back one gained nothing.
    decrease = np.log(state.kept_loss / loss)
    variance = (loss_var + state.kept_loss_var) / np.square(loss)
    rate, precision = trend.rate_and_precision(decrease, cost_growth, variance)
    precision = np.where(np.isfinite(decrease), precision, 0.0)
    decayed = size_statistics.DECAY * state.size_rates, size_statistics.DECAY * state.size_weights
    table = size_statistics.note(decayed, size, rate, precision)

    val, total = _as_array(signals.val_loss), _as_array(signals.total_cost)
    validated = np.isfinite(val) & (val > 0)
    mean_size = state.val_size + size * _as_array(signals.chunk_cost)
    again = validated & np.isfinite(state.last_val)
    val_decrease = np.where(again, np.log(state.last_val / val), 0.0)
    val_growth = np.where(again, np.log(total / state.val_cost), 0.0)
    rate, precision = trend.rate_and_precision(
        val_decrease, val_growth, np.full_like(loss, size_statistics.VALIDATION_VARIANCE)
    )
    where = mean_size / np.maximum(total - state.val_cost, _TINY)
    table = size_statistics.note(table, where, rate, np.where(again, precision, 0.0))
    decay = np.where(again, _RATE_DECAY, 1.0)
    return {
        "last_val": np.where(validated, val, state.last_val),
        "lowest_val": np.where(validated, np.fmin(state.lowest_val, val), state.lowest_val),
        "val_cost": np.where(validated, total, state.val_cost),
        "val_size": np.where(validated, 0.0, mean_size),
        "val_rate": decay * state.val_rate + val_decrease,
        "val_growth": decay * state.val_growth + val_growth,
        "kept_loss": np.where(kept, loss, state.kept_loss),
        "kept_loss_var": np.where(kept, loss_var, state.kept_loss_var),
        "size_rates": table[0],
        "size_weights": table[1],
    }


def _features(signals: Signals, before: EncoderState, after: EncoderState) -> list[Array]:
    context = signals.context
    size = after.last_size
    return [
        *_place(signals, context, size),
        *_learning_rate(signals, context),
        *_cost(signals, size),
        *_noise(signals, context, before, after, size),
        *_loss(signals, context, before, after),
        *_trend(signals, context, after, size),
        *_progress(signals, before, after),
        0.5 * after.last_change,
        np.minimum(after.since_change, 8) / 8,
        (after.largest - size) / 6,
        (size - after.smallest) / 6,
        *_validation(context, before, after),
        *_size_statistics(after, size),
        *_objective(signals, context),
        *_plan(signals, context),
    ]


def _place(signals: Signals, context: RunContext, size: Array) -> list[Array]:
    return [
        (size - np.log2(context.base_batch_size)) / 8,
        size / 8 - 1,
        (np.log2(context.max_batch_size) - size) / 8,
        (size - np.log2(context.min_batch_size)) / 8,
        (np.log2(context.dataset_size) - size) / 12,
        np.log1p(_as_array(signals.total_samples) / context.dataset_size) / 5,
        np.log2(1 + _as_array(signals.total_steps)) / 8 - 1,
    ]


def _learning_rate(signals: Signals, context: RunContext) -> list[Array]:
    return [
        _as_array(context.coupling_exponent),
        _as_array(context.adascale),
        np.log2(_as_array(signals.learning_rate_factor)) / 6,
        np.log2(np.maximum(signals.schedule_factor, 2.0**-6)) / 6,
        _as_array(context.adaptive),
        _as_array(context.momentum),
    ]


def step_cost_at(curve: Array, log2_size: Array) -> Array:
    """Return log2 of the cost of one step at a batch size, by linear interpolation in log-log.

    Args:
        curve: `Signals.step_cost_curve`, shape (..., 17).
        log2_size: log2 of the batch size, shape (...); clipped to the curve's range.
    """
    return _interpolated(curve, _as_array(log2_size)[..., None])[..., 0]


def _interpolated(curve: Array, log2_sizes: Array) -> Array:
    """Return `step_cost_at` several sizes of each run, which lie along the last axis."""
    position = np.minimum(np.maximum(log2_sizes, 0.0), len(COST_CURVE_SIZES) - 1.0)
    lower = np.minimum(position.astype(np.int64), len(COST_CURVE_SIZES) - 2)
    if curve.ndim == 1:
        left, right = curve[lower], curve[lower + 1]
    else:
        left = np.take_along_axis(curve, lower, axis=-1)
        right = np.take_along_axis(curve, lower + 1, axis=-1)
    return left + (right - left) * (position - lower)


def _cost(signals: Signals, size: Array) -> list[Array]:
    costs = _interpolated(signals.step_cost_curve, size[..., None] + _SHIFTS)
    elasticities = (costs[..., 1:] - costs[..., :1]) / _SHIFTS[1:]
    parts = [elasticities[..., index] for index in range(len(_SHIFTS) - 1)]
    return [*parts, _as_array(signals.step_cost_known)]


def _noise(
    signals: Signals, context: RunContext, before: EncoderState, after: EncoderState, size: Array
) -> list[Array]:
    weight = np.maximum(after.noise_weight, _TINY)
    grad_sqr, grad_se = after.grad_sqr / weight, np.sqrt(after.grad_sqr_var) / weight
    trace = after.noise_trace / weight
    measured = after.noise_weight > 0
    # Where |G|^2 drowns in its own error only a lower bound of the noise scale is known.
    noise_scale = np.log2(
        np.maximum(trace, _TINY) / np.maximum(grad_sqr, np.maximum(0.5 * grad_se, _TINY))
    )
    noise_scale = np.clip(noise_scale, -8.0, 24.0)
    certainty = np.where(measured, grad_sqr / (np.abs(grad_sqr) + grad_se + _TINY), 0.0)
    return [
        np.where(measured, 2.0 / (1.0 + 2.0 ** (size - noise_scale)) - 1.0, 0.0),
        np.where(measured, (noise_scale - size) / 10, 0.0),
        np.maximum(certainty, 0.0),
        after.cosine,
        np.where(
            measured & ~np.isnan(before.noise_fast), (after.noise_fast - noise_scale) / 6, 0.0
        ),
        np.where(measured, (_goodput_size(signals, context, noise_scale) - size) / 6, 0.0),
    ]


def _goodput_size(signals: Signals, context: RunContext, noise_scale: Array) -> Array:
    """log2 of the size of most progress per cost (Pollux, Qiao et al. 2021, section 3)."""
    sizes = np.log2(COST_CURVE_SIZES)
    # progress per cost = B / (phi + B) / cost(B); the constant phi + B0 does not move the argmax.
    score = (
        -np.log2(1.0 + 2.0 ** (np.asarray(noise_scale)[..., None] - sizes))
        - signals.step_cost_curve
    )
    low = np.asarray(np.log2(context.min_batch_size))[..., None]
    high = np.asarray(np.log2(context.max_batch_size))[..., None]
    score = np.where((sizes >= low - 0.5) & (sizes <= high + 0.5), score, -np.inf)
    return sizes[np.argmax(score, axis=-1)]


def _loss(
    signals: Signals, context: RunContext, before: EncoderState, after: EncoderState
) -> list[Array]:
    target = _as_array(context.target_loss)
    val = _as_array(signals.val_loss)
    has_val = np.isfinite(val) & (val > 0)
    level = np.where(has_val, val, after.last_loss)
    decrease = _finite(np.log(before.last_loss / after.last_loss))
    spread = np.sqrt(after.last_loss_var + before.last_loss_var)
    step_var = after.last_loss_var * np.maximum(signals.steps, 1)
    rate = after.rate / np.maximum(after.rate_cost, 1e-3)
    to_go = np.log(level / target)
    remaining = np.log2(np.maximum(to_go, 1e-3) / np.maximum(rate, 1e-3))
    return [
        np.log(after.last_loss / after.initial_loss) / 3,
        np.where(np.isnan(target), 0.0, np.log(after.last_loss / target) / 3),
        np.where(np.isnan(target) | ~has_val, 0.0, to_go / 3),
        np.where(has_val, np.log(val / after.last_loss), 0.0),
        has_val.astype(np.float64),
        np.tanh(5 * decrease),
        np.tanh(_finite((before.last_loss - after.last_loss) / np.maximum(spread, _TINY)) / 3),
        np.tanh(rate),
        np.where(np.isnan(target), 0.0, remaining / 8),
        (np.log10(np.sqrt(step_var) / after.last_loss + _TINY) + 1.5) / 2,
        np.tanh(3 * np.log(after.last_loss / after.lowest_loss)),
    ]


def _trend(signals: Signals, context: RunContext, state: EncoderState, size: Array) -> list[Array]:
    target = _as_array(context.target_loss)
    fast, slow = (state.fast_loss, state.fast_weight), (state.slow_loss, state.slow_weight)
    change, significance = trend.direction(fast, slow, state.one_sample_var)
    rate = state.rate_sum / np.maximum(state.rate_weight, _TINY)
    to_go = np.log(state.fast_loss / np.maximum(state.fast_weight, _TINY) / target)
    remaining = np.log2(np.maximum(to_go, 1e-3) / np.maximum(rate, 1e-3))
    slope, certain = trend.slope(
        state.rate_weight,
        state.rate_size,
        state.rate_sum,
        state.rate_size_sqr,
        state.rate_product,
    )
    return [
        np.tanh(3 * change),
        np.tanh(significance / 3),
        np.where(np.isnan(target), 0.0, to_go / 3),
        np.where(np.isnan(target), 0.0, remaining / 8),
        (size - state.size_cost / np.maximum(state.size_cost_weight, _TINY)) / 4,
        np.tanh(slope),
        np.tanh(certain / 3),
        _as_array(signals.steps) / np.maximum(signals.total_steps, 1),
    ]


def _progress(signals: Signals, before: EncoderState, after: EncoderState) -> list[Array]:
    ratio = after.actual_decrease / np.maximum(after.predicted_decrease, _TINY)
    growth = np.log2(after.gradient_level / before.gradient_level)
    trouble = (
        np.minimum(_as_array(signals.nonfinite_steps), 1.0) * 0.5
        + _as_array(signals.rolled_back) * 0.5
    )
    gain = (after.current_size_rate - after.previous_size_rate) / (
        np.abs(after.current_size_rate) + np.abs(after.previous_size_rate) + _TINY
    )
    return [
        np.where(after.predicted_decrease > 0, np.tanh(ratio), 0.0),
        np.tanh(_finite(growth)),
        trouble,
        _finite(gain),
    ]


def _validation(context: RunContext, before: EncoderState, after: EncoderState) -> list[Array]:
    """NaN, which `encode` turns into 0, before the first validation and without a target."""
    target = _as_array(context.target_loss)
    rate = after.val_rate / np.maximum(after.val_growth, 1e-3)
    remaining = np.log2(np.maximum(np.log(after.last_val / target), 1e-3) / np.maximum(rate, 1e-3))
    return [
        np.tanh(5 * np.log(before.last_val / after.last_val)),
        np.tanh(rate),
        np.where(after.val_growth > 0, remaining / 8, 0.0),
        np.tanh(3 * np.log(after.last_val / after.lowest_val)),
    ]


def _size_statistics(after: EncoderState, size: Array) -> list[Array]:
    rates, known = size_statistics.around((after.size_rates, after.size_weights), size)
    rates = np.tanh(rates)
    columns = range(len(size_statistics.OFFSETS))
    return [rates[..., i] for i in columns] + [known[..., i] for i in columns]


def _objective(signals: Signals, context: RunContext) -> list[Array]:
    budget = _as_array(context.budget)
    planned = _as_array(context.planned_samples)
    aimless = np.isnan(_as_array(context.target_loss))
    spent = np.where(
        np.isfinite(budget),
        _as_array(signals.total_cost) / budget,
        # Not beside a target, whose run goes on behind its plan; `_plan` tells of both.
        np.where(aimless & np.isfinite(planned), _as_array(signals.total_samples) / planned, 0.0),
    )
    return [
        aimless.astype(np.float64),
        spent,
        _as_array(context.weight_seconds),
        _as_array(context.weight_samples),
        _as_array(context.weight_joules),
    ]


def _plan(signals: Signals, context: RunContext) -> list[Array]:
    """How far the plan is done, and how many steps of this size it still has."""
    planned, done = _as_array(context.planned_samples), _as_array(signals.total_samples)
    known = np.isfinite(planned)
    steps_left = (planned - done) / signals.batch_size
    left = np.log2(np.maximum(steps_left, 1.0) / np.maximum(signals.total_steps, 1)) / 8
    return [
        known.astype(np.float64),
        np.where(known, np.minimum(done / planned, 1.0), 0.0),
        np.where(known, np.where(steps_left > 0, left, -1.0), 0.0),
    ]


def _as_array(value: float | Array) -> Array:
    return np.asarray(value, dtype=np.float64)


def _finite(value: float | Array) -> Array:
    given = np.asarray(value, dtype=np.float64)
    return np.where(np.isfinite(given), given, 0.0)  # a third of the time of np.nan_to_num
