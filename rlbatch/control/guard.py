"""When a chunk counts as damage: the rule by which its weights are rolled back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlbatch.errors import ConfigurationError

DECAY = 0.7  # a chunk, of the averages over kept chunks
FEWEST_SAMPLES = 16  # in the averages before a mean is worth comparing with
SAMPLE_SPREAD = 2.0  # least standard deviation of one sample's loss assumed, in units of its mean


@dataclass(frozen=True)
class GuardConfig:
    """Limits of the guard. A chunk is damage when its mean training loss exceeds both.

    Attributes:
        loss_ratio: Multiple of the lowest loss so far.
        significance: Standard errors above the recent mean, by what the losses of earlier chunks
            varied. (The chunk's own spread says nothing: that of an explosion is enormous.)
        max_consecutive: Rolled back chunks in a row after which the run counts as diverged.
    """

    loss_ratio: float = 3.0
    significance: float = 4.0
    max_consecutive: int = 4

    def __post_init__(self) -> None:
        """Refuse limits that every chunk would break."""
        if not self.loss_ratio > 1 or self.significance < 0 or self.max_consecutive < 1:
            raise ConfigurationError(
                "A guard needs loss_ratio > 1, significance >= 0 and max_consecutive >= 1, got "
                f"{self.loss_ratio}, {self.significance}, {self.max_consecutive}."
            )


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers between chunks.

    Attributes:
        lowest_loss: Lowest recent mean so far, of chunks that were kept; infinite before the first.
        recent_loss: Mean loss over the samples of recent chunks.
        sample_variance: Variance of one sample's loss over these, as batch means vary by it.
        weight: Samples in these averages, decayed.
        consecutive: Chunks rolled back in a row.
        unchanged: How many of these ran at the batch size that was in force before.
        diverged: The run cannot be saved.
    """

    lowest_loss: float = math.inf
    recent_loss: float = 0.0
    sample_variance: float = 0.0
    weight: float = 0.0
    consecutive: int = 0
    unchanged: int = 0
    diverged: bool = False


@dataclass(frozen=True)
class ChunkLoss:
    """What the guard looks at.

    Attributes:
        batch_size: Of the chunk.
        steps: Of the chunk.
        mean: Mean training loss; NaN when no step had a finite one.
        std: Standard deviation of the steps' losses.
        nonfinite: Steps whose loss was not finite.
        changed: The batch size was another before this chunk.
    """

    batch_size: int
    steps: int
    mean: float
    std: float
    nonfinite: int = 0
    changed: bool = False


def judge(state: GuardState, config: GuardConfig, chunk: ChunkLoss) -> tuple[bool, GuardState]:
    """Return whether a chunk must be rolled back, and the next state.

    A run is given up when two chunks in a row are rolled back without a change of the batch size
    (which then is not what is wrong), or `max_consecutive` with any.

    Args:
        state: Of the previous call.
        config: Limits.
        chunk: The chunk's losses.
    """
    if chunk.nonfinite == 0 and not _has_risen(state, config, chunk):
        return False, _keep(state, chunk)
    consecutive = state.consecutive + 1
    unchanged = state.unchanged + (not chunk.changed)
    return True, replace(
        state,
        consecutive=consecutive,
        unchanged=unchanged,
        diverged=unchanged >= 2 or consecutive >= config.max_consecutive,
    )


def _has_risen(state: GuardState, config: GuardConfig, chunk: ChunkLoss) -> bool:
    if not 0 < state.lowest_loss < math.inf:
        return False  # nothing to compare with; and negative losses have no meaningful ratio
    if state.weight < FEWEST_SAMPLES:
        return False  # the squared error of one sample is often a hundredth of the mean's
    variance = max(state.sample_variance, (SAMPLE_SPREAD * state.recent_loss) ** 2)
    samples = chunk.batch_size * max(chunk.steps, 1)
    error = math.sqrt(variance * (1.0 / samples + 1.0 / state.weight))
    limit = state.recent_loss + config.significance * error
    return chunk.mean > max(config.loss_ratio * state.lowest_loss, limit)


def _keep(state: GuardState, chunk: ChunkLoss) -> GuardState:
    samples = chunk.batch_size * chunk.steps
    old, total = DECAY * state.weight, DECAY * state.weight + samples

    def pooled(before: float, now: float) -> float:
        return (old * before + samples * now) / total

    recent = pooled(state.recent_loss, chunk.mean)
    return GuardState(
        lowest_loss=min(state.lowest_loss, recent) if total >= FEWEST_SAMPLES else math.inf,
        recent_loss=recent,
        sample_variance=pooled(state.sample_variance, chunk.std**2 * chunk.batch_size),
        weight=total,
    )
