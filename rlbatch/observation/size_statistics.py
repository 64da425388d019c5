"""What each batch size gave in this run so far: a table of rates of progress by size.

A rate is the decrease of the log loss for each e-fold of cost, as in `trend`: that number hardly
changes along a run, so what was seen at a size early still says something about it late.
Every chunk's training loss enters with the precision that its batches give it, and every validation
with that of a validation set, whose samples are the same each time. Pure functions on arrays whose
leading axes are free; the last axis of a table is log2 of the batch size, 0 to 16.
"""

from __future__ import annotations

import numpy as np

from rlbatch.signals.elementwise import isfinite, maximum, minimum, where
from rlbatch.signals.record import COST_CURVE_SIZES, Array

TABLE_SIZES = len(COST_CURVE_SIZES)
OFFSETS = (-3, -2, -1, 0, 1, 2, 3)
"""Of log2(batch size) from the one in force, at which the table is read."""

DECAY = 0.95  # a chunk
VALIDATION_VARIANCE = 2e-4  # of the difference between two log validation losses, by sampling

_COLUMNS, _OFFSETS = np.arange(TABLE_SIZES), np.array(OFFSETS)
_HALF_KNOWN = 4.0  # precision at which a rate counts as half known
_TINY = 1e-30


def note(
    table: tuple[Array, Array], log2_size: Array, rate: Array, precision: Array
) -> tuple[Array, Array]:
    """Return a table's weighted rates and weights after one more rate at a size.

    Args:
        table: Sums of precision x rate and of precision, each of shape (..., TABLE_SIZES).
        log2_size: Where the rate was seen, shape (...).
        rate: What was seen; of no account where its precision is 0.
        precision: Inverse variance of the rate.
    """
    column = minimum(maximum(np.rint(log2_size), 0), TABLE_SIZES - 1)
    rates, weights = table
    if rates.ndim == 1 and isfinite(precision) and isfinite(column):  # a live run's
        if precision == 0.0:
            return table
        if isfinite(rate):  # one entry changes
            rates, weights, place = rates.copy(), weights.copy(), int(column)
            rates[place] += precision * rate
            weights[place] += precision
            return rates, weights
    share = (column[..., None] == _COLUMNS) * precision[..., None]
    return rates + share * where(precision > 0.0, rate, 0.0)[..., None], weights + share


def around(table: tuple[Array, Array], log2_size: Array) -> tuple[Array, Array]:
    """Return the rates at `OFFSETS` from a size, and how well each is known, 0 to 1.

    Both have shape (..., len(OFFSETS)); a rate of which nothing is known is 0.
    """
    rates, weights = table
    if rates.ndim == 1:  # a live run's
        return _around_one(
            rates.tolist(), weights.tolist(), int(np.rint(log2_size).astype(np.int64))
        )
    columns = np.rint(log2_size).astype(np.int64)[..., None] + _OFFSETS
    places = np.minimum(np.maximum(columns, 0), TABLE_SIZES - 1)
    outside = places != columns
    places += np.arange(0, rates.size, TABLE_SIZES).reshape(*rates.shape[:-1], 1)
    rate, weight = rates.ravel()[places], weights.ravel()[places]
    np.copyto(weight, 0.0, where=outside)
    rate = np.where(weight > _TINY, rate / np.maximum(weight, _TINY), 0.0)
    return rate, weight / (weight + _HALF_KNOWN)


def _around_one(rates: list[float], weights: list[float], column: int) -> tuple[Array, Array]:
    """Return `around` for a single run: Python is quicker with seven numbers than NumPy."""
    found, known = [0.0] * len(OFFSETS), [0.0] * len(OFFSETS)
    for place, offset in enumerate(OFFSETS):
        size = column + offset
        if 0 <= size < TABLE_SIZES:
            weight = weights[size]
            known[place] = weight / (weight + _HALF_KNOWN)
            if weight > _TINY:
                found[place] = rates[size] / weight
    return np.array(found), np.array(known)
