"""Where the loss is going, and at which sizes it went there fastest: averages over many chunks.

A chunk of a few small batches says next to nothing about progress: its mean loss varies by more
than a run gains in ten chunks. Averages that weigh chunks by what they are worth do. Pure functions
on arrays whose leading axes are free.
"""

from __future__ import annotations

import numpy as np

from rlbatch.signals.elementwise import clip, maximum
from rlbatch.signals.record import Array

FAST_DECAY, SLOW_DECAY = 0.5, 0.85  # a chunk
RATE_DECAY = 0.9

_TINY = 1e-30
_MOST_RATE = 3.0  # of log loss per log cost: beyond, it is noise


def add(
    total: Array, weight: Array, value: Array, share: Array, decay: float
) -> tuple[Array, Array]:
    """Return a decayed sum and its weight after one more value."""
    return decay * total + share * value, decay * weight + share


def direction(
    fast: tuple[Array, Array], slow: tuple[Array, Array], one_sample_var: Array
) -> tuple[Array, Array]:
    """Return how much the recent loss lies below the longer mean, and that over its error.

    Args:
        fast: Sum and weight, in samples, of the losses of the last chunks.
        slow: The same over more chunks.
        one_sample_var: Variance of one sample's loss.

    Returns:
        log(longer mean / recent mean), and the difference in standard errors.
    """
    recent = fast[0] / maximum(fast[1], _TINY)
    longer = slow[0] / maximum(slow[1], _TINY)
    error = np.sqrt(one_sample_var * (1.0 / maximum(fast[1], _TINY) + 1.0 / (slow[1] + _TINY)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(longer / recent), (longer - recent) / maximum(error, _TINY)


def rate_and_precision(decrease: Array, growth: Array, variance: Array) -> tuple[Array, Array]:
    """Return a chunk's progress and how much it says: the inverse of its variance.

    Args:
        decrease: Of the log loss in the chunk.
        growth: Of the log cost in the chunk.
        variance: Of `decrease`.
    """
    rate = clip(decrease / maximum(growth, 1e-6), -_MOST_RATE, _MOST_RATE)
    return rate, growth * growth / (variance + 1e-4)


def slope(
    weight: Array, size: Array, rate: Array, size_sqr: Array, product: Array
) -> tuple[Array, Array]:
    """Return by how much a doubling of the batch size changed progress, and that over its error.

    A least-squares line through the chunks' rates against log2 of their sizes, weighted by
    precision: with inverse variances W as weights, Var(slope) = 1 / (W var(size)).

    Args:
        weight: Decayed sum of the weights w.
        size: Of w s.
        rate: Of w r.
        size_sqr: Of w s^2.
        product: Of w s r.
    """
    total = maximum(weight, _TINY)
    mean_size, mean_rate = size / total, rate / total
    spread = maximum(size_sqr / total - mean_size * mean_size, 0.0)
    value = (product / total - mean_size * mean_rate) / maximum(spread, 1e-3)
    return value, value * np.sqrt(weight * spread)
