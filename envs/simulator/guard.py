"""The guard's rule for many runs at once: `rlbatch.control.guard.judge`, entry by entry.

`judge` is the rule. This form of it exists for speed alone, and a test holds the two to each other.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rlbatch.control.guard import (
    _DECAY,
    _FEWEST_SAMPLES,
    _SAMPLE_SPREAD,
    _SETTLED,
    GuardConfig,
    GuardState,
)
from rlbatch.envs.simulator.arrays import Array

_START = astuple(GuardState())
_KIND = np.dtype(
    [(f.name, np.asarray(v).dtype) for f, v in zip(fields(GuardState), _START, strict=True)]
)
_FRESH = np.array(_START, dtype=_KIND)


@dataclass(frozen=True)
class ChunkLosses:
    """`rlbatch.control.guard.ChunkLoss` with one entry a run; losses that are not finite as a mask.

    Attributes:
        batch_size: Of the chunks.
        steps: Of the chunks.
        mean: Mean training loss.
        std: Standard deviation of the steps' losses.
        exploded: A loss was not finite.
        changed: The batch size was another before.
    """

    batch_size: Array
    steps: Array
    mean: Array
    std: Array
    exploded: NDArray[np.bool_]
    changed: NDArray[np.bool_]


def initial_states(count: int) -> NDArray[np.void]:
    """Return the states of so many guards, a structured array with `GuardState`'s fields."""
    states = np.empty(count, dtype=_KIND)
    states[:] = _FRESH
    return states


def judge_all(
    states: NDArray[np.void], config: GuardConfig, chunk: ChunkLosses
) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
    """Return which chunks must be rolled back, and the next states."""
    risen = ~chunk.exploded & _have_risen(states, config, chunk)
    anyway = risen & ~chunk.changed & (states["suspected"] | (states["settled"] >= _SETTLED))
    damaged = chunk.exploded | (risen & ~anyway)
    begun = states
    if anyway.any():  # few: the others are spared a copy
        begun = states.copy()
        begun[anyway] = initial_states(int(anyway.sum()))
        begun["settled"] = states["settled"]
    judged = _keep(begun, chunk)
    if damaged.any():
        judged[damaged] = _undo(
            states[damaged], config, chunk.changed[damaged], chunk.exploded[damaged]
        )
    return damaged, judged


def _undo(
    undone: NDArray[np.void], config: GuardConfig, changed: Array, exploded: Array
) -> NDArray[np.void]:
    undone["consecutive"] += 1
    undone["unchanged"] += ~changed
    often = undone["consecutive"] >= config.max_consecutive
    undone["diverged"] = (undone["unchanged"] >= 2) | often
    undone["tried"] = False
    undone["suspected"] = changed & ~exploded
    return undone


def _have_risen(states: NDArray[np.void], config: GuardConfig, chunk: ChunkLosses) -> Array:
    lowest, recent, weight = states["lowest_loss"], states["recent_loss"], states["weight"]
    comparable = (lowest > 0.0) & (lowest < np.inf) & (weight >= _FEWEST_SAMPLES)
    variance = np.maximum(states["sample_variance"], np.square(_SAMPLE_SPREAD * recent))
    samples = chunk.batch_size * np.maximum(chunk.steps, 1)
    error = np.sqrt(variance * (1.0 / samples + 1.0 / np.maximum(weight, _FEWEST_SAMPLES)))
    limit = np.maximum(config.loss_ratio * lowest, recent + config.significance * error)
    jump = states["last_loss"] + (config.loss_ratio - 1.0) * np.where(comparable, lowest, 0.0)
    return comparable & (chunk.mean > np.maximum(limit, jump))


def _keep(states: NDArray[np.void], chunk: ChunkLosses) -> NDArray[np.void]:
    samples = chunk.batch_size * chunk.steps
    old = _DECAY * states["weight"]
    total = old + samples
    kept = initial_states(len(states))
    kept["recent_loss"] = recent = (old * states["recent_loss"] + samples * chunk.mean) / total
    spread = np.square(chunk.std) * chunk.batch_size
    kept["sample_variance"] = (old * states["sample_variance"] + samples * spread) / total
    lowest = np.minimum(states["lowest_loss"], recent)
    kept["lowest_loss"] = np.where(total >= _FEWEST_SAMPLES, lowest, np.inf)
    kept["weight"] = total
    # The chunk behind a roll-back, at the old size, says nothing about the next change.
    tried = (states["consecutive"] > 0) & ~states["tried"] & ~chunk.changed
    kept["consecutive"] = np.where(tried, states["consecutive"], 0)
    kept["last_loss"] = chunk.mean
    kept["settled"] = np.where(chunk.changed, 0, states["settled"] + 1)
    kept["tried"] = tried
    return kept
