"""What a chunk is worth: one rule for real and simulated episodes of every objective."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.envs.objectives import UNREACHED_RATIO, disutility
from rlbatch.signals.record import Array

WORSE_WEIGHT, BETTER_WEIGHT = 8.0, 4.0
"""A final loss that is one percent worse costs as much as eight percent more time; one that is one
percent better is worth half of that."""

_BEST, _WORST = -0.15, math.log(2.0)  # of log loss; what is lost counts as the worst


def ratio_reward(
    before: ArrayLike, after: ArrayLike, *, lost: bool | NDArray[np.bool_] = False
) -> Array:
    """Return the rewards of chunks of runs to a target, or with a budget; any shape.

    They sum to minus the `disutility` of the ratio with which a run ends, plus that of the one at
    which the sum begins.

    Args:
        before: Ratio to the reference before the chunk.
        after: And after it.
        lost: The run has failed: whatever its ratio is, it counts as `UNREACHED_RATIO`.
    """
    ended = np.where(lost, UNREACHED_RATIO, np.asarray(after, dtype=np.float64))
    return disutility(np.asarray(before, dtype=np.float64)) - disutility(ended)


def planned_reward(before: ArrayLike, after: ArrayLike, loss_ratio: ArrayLike) -> Array:
    """Return the rewards of chunks of runs of so many samples; any shape.

    They sum to minus the cost relative to the reference's, less the `loss_penalty` of the end.

    Args:
        before: Cost relative to the whole reference's before the chunk.
        after: And after it.
        loss_ratio: Of the final loss to the reference's; 1 where the run has not ended.
    """
    return np.asarray(before) - np.asarray(after) - loss_penalty(loss_ratio)


def loss_penalty(ratio: ArrayLike) -> Array:
    """Return what a final loss counts, given its ratio to the reference's: negative if better."""
    worse = np.clip(np.log(np.asarray(ratio, dtype=np.float64)), _BEST, _WORST)
    return worse * np.where(worse > 0.0, WORSE_WEIGHT, BETTER_WEIGHT)
