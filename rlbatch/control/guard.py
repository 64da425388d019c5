"""When a chunk counts as damage: the rule by which its weights are rolled back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlbatch.errors import ConfigurationError


@dataclass(frozen=True)
class GuardConfig:
    """Limits of the guard.

    Attributes:
        loss_ratio: A chunk is damage when its mean training loss exceeds this multiple of the
            lowest of any chunk before.
        significance: And when the rise exceeds this many standard errors of the chunk's mean, so
            that the noise of a few small batches is none.
        max_consecutive: Rolled back chunks in a row after which the run counts as diverged.
    """

    loss_ratio: float = 3.0
    significance: float = 3.0
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
        lowest_loss: Lowest mean training loss of a chunk that was kept; infinite before the first.
        last_rolled_size: Batch size of the previous chunk if that was rolled back, else None.
        consecutive: Chunks rolled back in a row.
        diverged: The run cannot be saved.
    """

    lowest_loss: float = math.inf
    last_rolled_size: int | None = None
    consecutive: int = 0
    diverged: bool = False


def judge(
    state: GuardState,
    config: GuardConfig,
    *,
    batch_size: int,
    steps: int,
    train_loss: float,
    train_loss_std: float,
    nonfinite_losses: int,
) -> tuple[bool, GuardState]:
    """Return whether a chunk must be rolled back, and the next state.

    A run is given up when two chunks in a row are rolled back at the same batch size (the size is
    not what is wrong), or `max_consecutive` at any.

    Args:
        state: Of the previous call.
        config: Limits.
        batch_size: Of the chunk.
        steps: Of the chunk.
        train_loss: Mean training loss; NaN when no step had a finite one.
        train_loss_std: Standard deviation of the steps' losses.
        nonfinite_losses: Steps whose loss was not finite.
    """
    rise = train_loss - state.lowest_loss
    error = train_loss_std / math.sqrt(max(steps, 1))
    # A negative loss has no meaningful ratio; only what is not finite counts then.
    risen = (
        0 < state.lowest_loss < math.inf
        and train_loss > config.loss_ratio * state.lowest_loss
        and rise > config.significance * error
    )
    if not (risen or nonfinite_losses > 0):
        return False, GuardState(lowest_loss=min(state.lowest_loss, train_loss))
    consecutive = state.consecutive + 1
    diverged = batch_size == state.last_rolled_size or consecutive >= config.max_consecutive
    return True, replace(
        state, last_rolled_size=batch_size, consecutive=consecutive, diverged=diverged
    )
