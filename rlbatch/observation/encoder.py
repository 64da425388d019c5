"""The one encoder: a chunk's signals become the bounded, scale-free vector that a policy sees.

The same function serves a live run, the live environment and the vectorised simulator: it is
written on arrays whose leading axes are free. A policy trained in simulation can be deployed only
because of that.

Nothing here depends on the unit of the loss, of the gradient or of the cost: only ratios, fractions
and cosines enter.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation.feature import Moment
from rlbatch.observation.state import EncoderState, advance, as_numbers
from rlbatch.observation.table import FEATURES
from rlbatch.signals.record import Signals

_LOWEST, _HIGHEST = np.float32(-1.0), np.float32(1.0)


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
        state = as_numbers(state)
        after = advance(signals, state)
        moment = Moment(signals, state, after)
        shapes = after.last_size.shape, after.chunks.shape
        if any(shapes):
            # Feature by feature in memory: the runs of one lie side by side while it is written.
            table = np.empty((len(FEATURES), *np.broadcast_shapes(*shapes)), np.float32)
            for index, feature in enumerate(FEATURES):
                table[index] = feature.compute(moment)
            observation = np.ascontiguousarray(np.moveaxis(table, 0, -1))
        else:  # a live run's: single numbers
            values: Any = [feature.compute(moment) for feature in FEATURES]
            observation = np.frombuffer(array("d", values)).astype(np.float32)
    np.minimum(np.maximum(observation, _LOWEST, out=observation), _HIGHEST, out=observation)
    np.copyto(observation, 0.0, where=np.isnan(observation))
    return observation, after
