"""When a chunk counts as damage: the rule by which its weights are rolled back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlbatch.arguments import real_number, shown, whole_number
from rlbatch.errors import ConfigurationError

_DECAY = 0.7  # a chunk, of the averages over kept chunks
_FEWEST_SAMPLES = 16  # in the averages before a mean is worth comparing with
_SAMPLE_SPREAD = 2.0  # least standard deviation of one sample's loss assumed, in units of its mean
_SETTLED = 3  # kept chunks at an unchanged size, after which it is not what lets a loss rise


@dataclass(frozen=True)
class GuardConfig:
    """Limits of the guard. A chunk is damage when its mean training loss exceeds both.

    A loss may also be meant to rise, as where a term is phased in. So a chunk is compared with the
    one before it, too, and a finite loss that rises at an unchanged size is no damage: where the
    size had been in force for some chunks, or where a chunk that was rolled back for its new size
    rises again at the old one.

    Attributes:
        loss_ratio: Multiple of the lowest loss so far; and one less, that multiple above the loss
            of the chunk before.
        significance: Standard errors above the recent mean, by what the losses of earlier chunks
            varied. (The chunk's own spread says nothing: that of an explosion is enormous.)
        max_consecutive: Rolled back chunks in a row after which the run counts as diverged.
    """

    loss_ratio: float = 3.0
    significance: float = 4.0
    max_consecutive: int = 4

    def __post_init__(self) -> None:
        """Refuse limits that every chunk would break; keep numbers as Python's own."""
        ratio, significance = real_number(self.loss_ratio), real_number(self.significance)
        most = whole_number(self.max_consecutive)
        if not (
            (ratio is not None and ratio > 1)
            and (significance is not None and significance >= 0)
            and (most is not None and most >= 1)
        ):
            raise ConfigurationError(
                "A guard needs loss_ratio > 1, significance >= 0 and a whole max_consecutive >= 1, "
                f"got {shown(self.loss_ratio)}, {shown(self.significance)}, "
                f"{shown(self.max_consecutive)}."
            )
        object.__setattr__(self, "loss_ratio", ratio)
        object.__setattr__(self, "significance", significance)
        object.__setattr__(self, "max_consecutive", most)


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers between chunks.

    Attributes:
        lowest_loss: Lowest recent mean so far, of chunks that were kept; infinite before the first.
        recent_loss: Mean loss over the samples of recent chunks.
        sample_variance: Variance of one sample's loss over these, as batch means vary by it.
        weight: Samples in these averages, decayed.
        consecutive: Chunks rolled back in a row. One that was kept in between counts as an end
            only if the batch size had changed again, or if it is the second.
        unchanged: How many of these ran at the batch size that was in force before.
        diverged: The run cannot be saved.
        last_loss: Mean of the chunk that was kept last; 0 before the first.
        settled: Chunks kept since the batch size last changed, without the first at that size.
        tried: The latest chunk was kept, and the one before it was rolled back.
        suspected: The latest chunk was rolled back for a loss that rose at a changed size.
    """

    lowest_loss: float = math.inf
    recent_loss: float = 0.0
    sample_variance: float = 0.0
    weight: float = 0.0
    consecutive: int = 0
    unchanged: int = 0
    diverged: bool = False
    last_loss: float = 0.0
    settled: int = 0
    tried: bool = False
    suspected: bool = False


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
    if chunk.nonfinite == 0:
        if not _has_risen(state, config, chunk):
            return False, _keep(state, chunk)
        if _rises_anyway(state, chunk):
            return False, kept_level(state, chunk)
    consecutive = state.consecutive + 1
    unchanged = state.unchanged + (not chunk.changed)
    return True, replace(
        state,
        consecutive=consecutive,
        unchanged=unchanged,
        diverged=unchanged >= 2 or consecutive >= config.max_consecutive,
        tried=False,
        suspected=chunk.changed and chunk.nonfinite == 0,
    )


def rises_the_same(
    before: GuardState, config: GuardConfig, chunk: ChunkLoss, trial: ChunkLoss
) -> bool:
    """Return whether the weights from before a chunk have a loss as high as the chunk's own.

    Then it is the loss that rises, and not what the chunk made of the weights.

    Args:
        before: The state that the chunk was judged by.
        config: Limits.
        chunk: Which `judge` calls damage.
        trial: The first step behind it, with the weights from before it.
    """
    if chunk.nonfinite or not math.isfinite(trial.mean):
        return False
    middle = 0.5 * (before.recent_loss + chunk.mean)
    return trial.mean >= middle and _has_risen(before, config, trial)


def kept_level(before: GuardState, chunk: ChunkLoss) -> GuardState:
    """Return the state behind a chunk whose loss was meant to rise: from this level on."""
    return _keep(GuardState(settled=before.settled), chunk)


def _has_risen(state: GuardState, config: GuardConfig, chunk: ChunkLoss) -> bool:
    if not 0 < state.lowest_loss < math.inf:
        return False  # nothing to compare with; and negative losses have no meaningful ratio
    if state.weight < _FEWEST_SAMPLES:
        return False  # the squared error of one sample is often a hundredth of the mean's
    variance = max(state.sample_variance, _square(_SAMPLE_SPREAD * state.recent_loss))
    samples = chunk.batch_size * max(chunk.steps, 1)
    error = math.sqrt(variance * (1.0 / samples + 1.0 / state.weight))
    limit = state.recent_loss + config.significance * error
    jump = state.last_loss + (config.loss_ratio - 1.0) * state.lowest_loss
    return chunk.mean > max(config.loss_ratio * state.lowest_loss, jump, limit)


def _square(value: float) -> float:
    try:
        return value**2
    except OverflowError:  # of a loss beyond 1e154
        return math.inf


def _rises_anyway(state: GuardState, chunk: ChunkLoss) -> bool:
    """Whether a loss that has risen did so at a size that is not to blame."""
    return not chunk.changed and (state.suspected or state.settled >= _SETTLED)


def _keep(state: GuardState, chunk: ChunkLoss) -> GuardState:
    samples = chunk.batch_size * chunk.steps
    old, total = _DECAY * state.weight, _DECAY * state.weight + samples

    def pooled(before: float, now: float) -> float:
        return (old * before + samples * now) / total

    recent = pooled(state.recent_loss, chunk.mean)
    # The chunk behind a roll-back, at the old size, says nothing about the next change.
    tried = state.consecutive > 0 and not state.tried and not chunk.changed
    return GuardState(
        lowest_loss=min(state.lowest_loss, recent) if total >= _FEWEST_SAMPLES else math.inf,
        recent_loss=recent,
        sample_variance=pooled(state.sample_variance, _square(chunk.std) * chunk.batch_size),
        weight=total,
        consecutive=state.consecutive if tried else 0,
        last_loss=chunk.mean,
        settled=0 if chunk.changed else state.settled + 1,
        tried=tried,
    )
