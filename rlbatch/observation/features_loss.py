"""Features of the loss: where it is, where it is going, and how sure that is."""

from __future__ import annotations

import numpy as np

from rlbatch.observation.feature import SHARE, SIGNED, Feature, Moment
from rlbatch.observation.state import TINY, finite
from rlbatch.signals.elementwise import isnan, maximum, minimum, number, where
from rlbatch.signals.record import Array


def _targeted(m: Moment, value: Array) -> Array:
    """The value, 0 in runs without a target."""
    return where(isnan(m.target), 0.0, value)


def _remaining(to_go: Array, rate: Array) -> Array:
    """log2 of the e-folds of cost that are left at this rate."""
    return np.log2(maximum(to_go, 1e-3) / maximum(rate, 1e-3))


def _decrease(m: Moment) -> Array:
    return finite(np.log(m.before.last_loss / m.after.last_loss))


def _significance(m: Moment) -> Array:
    spread = np.sqrt(m.after.last_loss_var + m.before.last_loss_var)
    return finite((m.before.last_loss - m.after.last_loss) / maximum(spread, TINY))


def _loss_noise(m: Moment) -> Array:
    step_var = m.after.last_loss_var * maximum(m.signals.steps, 1)
    return (np.log10(np.sqrt(step_var) / m.after.last_loss + TINY) + 1.5) / 2


def _recent_remaining(m: Moment) -> Array:
    rate = m.after.rate_sum / maximum(m.after.rate_weight, TINY)
    return _targeted(m, _remaining(m.recent_to_go, rate) / 8)


def _progress_ratio(m: Moment) -> Array:
    ratio = m.after.actual_decrease / maximum(m.after.predicted_decrease, TINY)
    return where(m.after.predicted_decrease > 0, np.tanh(ratio), 0.0)


def _trouble(m: Moment) -> Array:
    nonfinite = minimum(number(m.signals.nonfinite_steps), 1.0)
    return nonfinite * 0.5 + number(m.signals.rolled_back) * 0.5


def _rate_change(m: Moment) -> Array:
    now, earlier = m.after.current_size_rate, m.after.previous_size_rate
    return finite((now - earlier) / (abs(now) + abs(earlier) + TINY))


def _val_rate(m: Moment) -> Array:
    return m.after.val_rate / maximum(m.after.val_growth, 1e-3)


def _val_remaining(m: Moment) -> Array:
    remaining = _remaining(np.log(m.after.last_val / m.target), _val_rate(m))
    return where(m.after.val_growth > 0, remaining / 8, 0.0)


LOSS = (
    Feature(
        *("loss_vs_initial", "loss", "3 e-folds", SIGNED),
        "Training loss over that of the first chunk.",
        lambda m: np.log(m.after.last_loss / m.after.initial_loss) / 3,
    ),
    Feature(
        *("loss_vs_target", "loss", "3 e-folds", SIGNED),
        "Training loss over the target.",
        lambda m: _targeted(m, np.log(m.after.last_loss / m.target) / 3),
    ),
    Feature(
        *("val_vs_target", "loss", "3 e-folds", SIGNED),
        "Validation loss of this chunk over the target.",
        lambda m: where(isnan(m.target) | ~m.has_val, 0.0, m.to_go / 3),
    ),
    Feature(
        *("val_gap", "loss", "e-folds", SIGNED),
        "Validation loss over the training loss.",
        lambda m: where(m.has_val, np.log(m.val_loss / m.after.last_loss), 0.0),
    ),
    Feature(
        *("val_known", "loss", "flag", SHARE),
        "Whether this chunk had a validation.",
        lambda m: m.has_val.astype(np.float64),
    ),
    Feature(
        *("decrease", "loss", "tanh of 1/5 e-fold", SIGNED),
        "Decrease of the log training loss since the previous chunk.",
        lambda m: np.tanh(5 * _decrease(m)),
    ),
    Feature(
        *("decrease_significance", "loss", "tanh of 3 standard errors", SIGNED),
        "That decrease over its standard error.",
        lambda m: np.tanh(_significance(m) / 3),
    ),
    Feature(
        *("decrease_rate", "loss", "tanh of 1", SIGNED),
        "Recent decrease of the log loss for each e-fold of cost.",
        lambda m: np.tanh(m.rate),
    ),
    Feature(
        *("remaining", "loss", "8 doublings", SIGNED),
        "E-folds of cost to the target at that rate.",
        lambda m: _targeted(m, _remaining(m.to_go, m.rate) / 8),
    ),
    Feature(
        *("loss_noise", "loss", "2 decades, from -1.5", SIGNED),
        "Standard deviation of one step's loss over the loss.",
        _loss_noise,
    ),
    Feature(
        *("rise", "loss", "tanh of 1/3 e-fold", SHARE),
        "Training loss over the lowest so far.",
        lambda m: np.tanh(3 * np.log(m.after.last_loss / m.after.lowest_loss)),
    ),
)

TREND = (
    Feature(
        *("trend", "trend", "tanh of 1/3 e-fold", SIGNED),
        "Mean loss of many chunks over that of the last ones.",
        lambda m: np.tanh(3 * m.direction[0]),
    ),
    Feature(
        *("trend_significance", "trend", "tanh of 3 standard errors", SIGNED),
        "Their difference over its standard error.",
        lambda m: np.tanh(m.direction[1] / 3),
    ),
    Feature(
        *("recent_vs_target", "trend", "3 e-folds", SIGNED),
        "Mean loss of the last chunks over the target.",
        lambda m: _targeted(m, m.recent_to_go / 3),
    ),
    Feature(
        *("recent_remaining", "trend", "8 doublings", SIGNED),
        "E-folds of cost to the target at the rate of many chunks.",
        _recent_remaining,
    ),
    Feature(
        *("mean_size", "trend", "4 doublings", SIGNED),
        "Batch size over its cost-weighted mean.",
        lambda m: (m.size - m.after.size_cost / maximum(m.after.size_cost_weight, TINY)) / 4,
    ),
    Feature(
        *("size_slope", "trend", "tanh of 1", SIGNED),
        "What a doubling of the batch size changed of the rate of progress.",
        lambda m: np.tanh(m.size_slope[0]),
    ),
    Feature(
        *("size_slope_significance", "trend", "tanh of 3 standard errors", SIGNED),
        "That change over its standard error.",
        lambda m: np.tanh(m.size_slope[1] / 3),
    ),
    Feature(
        *("chunk_share", "trend", "1", SHARE),
        "Share of the run's steps that lie in this chunk.",
        lambda m: number(m.signals.steps) / maximum(m.signals.total_steps, 1),
    ),
)

PROGRESS = (
    Feature(
        *("progress_ratio", "progress", "tanh of 1", SIGNED),
        "Actual over predicted decrease of the loss.",
        _progress_ratio,
    ),
    Feature(
        *("gradient_growth", "progress", "tanh of 1 doubling", SIGNED),
        "Mean squared norm of a step's gradient over the one before.",
        lambda m: np.tanh(finite(np.log2(m.after.gradient_level / m.before.gradient_level))),
    ),
    Feature(
        *("trouble", "progress", "half each", SHARE),
        "Steps that were not finite, and a chunk that was rolled back.",
        _trouble,
    ),
    Feature(
        *("rate_change", "progress", "1", SIGNED),
        "Progress per cost at this size against that at the size before.",
        _rate_change,
    ),
)

HISTORY = (
    Feature(
        *("last_change", "history", "2 doublings", SIGNED),
        "The change of the batch size after the previous chunk.",
        lambda m: 0.5 * m.after.last_change,
    ),
    Feature(
        *("since_change", "history", "8 chunks", SHARE),
        "Chunks since the batch size changed.",
        lambda m: minimum(m.after.since_change, 8) / 8,
    ),
    Feature(
        *("explored_up", "history", "6 doublings", SHARE),
        "Largest batch size so far over this one.",
        lambda m: (m.after.largest - m.size) / 6,
    ),
    Feature(
        *("explored_down", "history", "6 doublings", SHARE),
        "This batch size over the smallest so far.",
        lambda m: (m.size - m.after.smallest) / 6,
    ),
)

# NaN before the first validation, and where there is no target.
VALIDATION = (
    Feature(
        *("val_decrease", "validation", "tanh of 1/5 e-fold", SIGNED),
        "Decrease of the log validation loss since the validation before.",
        lambda m: np.tanh(5 * np.log(m.before.last_val / m.after.last_val)),
    ),
    Feature(
        *("val_trend", "validation", "tanh of 1", SIGNED),
        "Recent decrease of the log validation loss for each e-fold of cost.",
        lambda m: np.tanh(_val_rate(m)),
    ),
    Feature(
        *("val_remaining", "validation", "8 doublings", SIGNED),
        "E-folds of cost to the target at that rate.",
        _val_remaining,
    ),
    Feature(
        *("val_rise", "validation", "tanh of 1/3 e-fold", SHARE),
        "Validation loss over the lowest so far.",
        lambda m: np.tanh(3 * np.log(m.after.last_val / m.after.lowest_val)),
    ),
)
