"""Features of other batch sizes: what they cost, what noise says of them, what they gave so far."""

from __future__ import annotations

from collections.abc import Callable

from rlbatch.observation.feature import SHARE, SIGNED, Feature, Moment
from rlbatch.observation.state import TINY
from rlbatch.signals.elementwise import isnan, maximum, number, where
from rlbatch.signals.record import Array

_FACTORS = ("/16", "/4", "/2", "x2", "x4", "x16")
_SIZES = ("/8", "/4", "/2", "here", "x2", "x4", "x8")


def _measured(m: Moment, value: Array) -> Array:
    """The value, 0 where the gradient noise was never measured."""
    return where(m.noise_measured, value, 0.0)


def _certainty(m: Moment) -> Array:
    grad_sqr, error = m.mean_gradient
    return maximum(_measured(m, grad_sqr / (abs(grad_sqr) + error + TINY)), 0.0)


def _noise_trend(m: Moment) -> Array:
    known = m.noise_measured & ~isnan(m.before.noise_fast)
    return where(known, (m.after.noise_fast - m.noise_scale) / 6, 0.0)


def _at(values: Array, column: int) -> Array:
    """The column of each run; a number of a single run's, and not an array of one."""
    return values[column] if values.ndim == 1 else values[..., column]


def _elasticity(column: int) -> Callable[[Moment], Array]:
    return lambda m: _at(m.elasticities, column)


def _rate(column: int) -> Callable[[Moment], Array]:
    return lambda m: _at(m.size_rates[0], column)


def _known(column: int) -> Callable[[Moment], Array]:
    return lambda m: _at(m.size_rates[1], column)


COST = (
    *(
        Feature(
            *(f"elasticity_{factor}", "cost", "exponent", SIGNED),
            f"Growth of log step cost with log batch size, from this one to {factor}.",
            _elasticity(column),
        )
        for column, factor in enumerate(_FACTORS)
    ),
    Feature(
        *("cost_known", "cost", "1", SHARE),
        "How well the cost of a step is known at other sizes.",
        lambda m: number(m.signals.step_cost_known),
    ),
)

NOISE = (
    Feature(
        *("efficiency", "noise", "1, from -1", SIGNED),
        "Statistical efficiency phi / (phi + B) of the batch size, times 2, minus 1.",
        lambda m: _measured(m, 2.0 / (1.0 + 2.0 ** (m.size - m.noise_scale)) - 1.0),
    ),
    Feature(
        *("noise_vs_size", "noise", "10 doublings", SIGNED),
        "Gradient noise scale over the batch size.",
        lambda m: _measured(m, (m.noise_scale - m.size) / 10),
    ),
    Feature(
        *("noise_known", "noise", "1", SHARE),
        "How far the squared gradient stands out of its standard error.",
        _certainty,
    ),
    Feature(
        *("cosine", "noise", "1", SIGNED),
        "Cosine between the gradients of the batch's halves.",
        lambda m: m.after.cosine,
    ),
    Feature(
        *("noise_trend", "noise", "6 doublings", SIGNED),
        "The last chunk's noise scale over the mean.",
        _noise_trend,
    ),
    Feature(
        *("goodput_step", "noise", "6 doublings", SIGNED),
        "The size of most progress per cost by the noise scale, over this one.",
        lambda m: _measured(m, (m.goodput_size - m.size) / 6),
    ),
)

SIZE_STATISTICS = (
    *(
        Feature(
            *(f"rate_{size}", "size_statistics", "tanh of 1", SIGNED),
            f"Decrease of the log loss for each e-fold of cost, seen at this size {size}.",
            _rate(column),
        )
        for column, size in enumerate(_SIZES)
    ),
    *(
        Feature(
            *(f"known_{size}", "size_statistics", "1", SHARE),
            f"How well that rate is known at this size {size}.",
            _known(column),
        )
        for column, size in enumerate(_SIZES)
    ),
)
