"""From a batch size to the micro-batches of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbatch.errors import ConfigurationError
from rlbatch.signals.elementwise import clip, isfinite, isnan, number, where
from rlbatch.signals.record import Array, Numeric

_MOST_DOUBLINGS = 64.0  # of one decision: beyond every limit, and far from an overflow


@dataclass(frozen=True)
class StepPlan:
    """How one rank divides one optimizer step.

    Attributes:
        batch_size: Samples of the step on all ranks together.
        sizes: Samples of each micro-batch of this rank, in order.
    """

    batch_size: int
    sizes: tuple[int, ...]

    @property
    def share(self) -> int:
        """Samples of the step on this rank."""
        return sum(self.sizes)


def plan_step(
    batch_size: int,
    micro_batch_size: int | None = None,
    world_size: int = 1,
    measure: bool = False,
    *,
    rank: int = 0,
) -> StepPlan:
    """Divide one optimizer step into micro-batches as equal as possible.

    All ranks get the same number of micro-batches, so that each does the same number of backward
    passes. Shares differ by at most one sample, and so do the micro-batches of a share. Where the
    shares differ and the limit is 1, one micro-batch of the larger shares holds two samples: there
    is no other way to keep the ranks in step.

    Args:
        batch_size: Samples of the step on all ranks together; at least one a rank.
        micro_batch_size: Most samples of one forward pass; None for no limit.
        world_size: Number of ranks.
        measure: Ask for two micro-batches or more, from which gradient noise can be estimated. A
            share of one sample cannot be split.
        rank: The rank whose micro-batches are wanted.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    check_ranks(rank, world_size)
    check_micro_batch_size(micro_batch_size)
    if batch_size < world_size:
        raise ConfigurationError(
            f"Expected a batch size of at least one sample for each of {world_size} ranks, got "
            f"{batch_size}. Use round_batch_size."
        )
    smallest, longer_shares = divmod(batch_size, world_size)
    largest = smallest + (longer_shares > 0)
    count = 1 if micro_batch_size is None else -(-largest // micro_batch_size)
    if measure:
        count = max(count, 2)
    share = smallest + (rank < longer_shares)
    return StepPlan(batch_size, _split_evenly(share, min(count, smallest)))


def share_start(batch_size: int, world_size: int, rank: int) -> int:
    """Return where a rank's share starts among the samples of a step."""
    smallest, longer_shares = divmod(batch_size, world_size)
    return rank * smallest + min(rank, longer_shares)


def micro_batch_totals(batch_size: int, count: int, world_size: int = 1) -> tuple[int, ...]:
    """Return the samples of each micro-batch on all ranks together.

    Args:
        batch_size: Samples of the step on all ranks together.
        count: Micro-batches of a rank, of a `StepPlan`.
        world_size: Number of ranks.
    """
    smallest, longer_shares = divmod(batch_size, world_size)
    short, long = _split_evenly(smallest, count), _split_evenly(smallest + 1, count)
    return tuple(
        longer_shares * more + (world_size - longer_shares) * less
        for more, less in zip(long, short, strict=True)
    )


def round_batch_size(
    wanted: Numeric, minimum: Numeric, maximum: Numeric, world_size: int = 1
) -> Array:
    """Return the batch sizes within the limits that are nearest and that the ranks can share alike.

    Args:
        wanted: Any shape; infinite sizes give the limits.
        minimum: Smallest batch size.
        maximum: Largest.
        world_size: Ranks; the size is a multiple of it. Halfway between two, the even multiple is
            taken.

    Raises:
        ConfigurationError: No multiple lies between the limits, or a size is NaN.
    """
    check_ranks(0, world_size)
    shares = number(wanted) / world_size
    fewest, most = np.ceil(number(minimum) / world_size), np.floor(number(maximum) / world_size)
    if (fewest > most).any():
        raise ConfigurationError(
            f"Expected a multiple of the {world_size} ranks between the batch sizes {minimum} and "
            f"{maximum}, and there is none. Widen the limits."
        )
    if isnan(shares).any():
        raise ConfigurationError("Expected a batch size, got NaN. Keep the size that is in force.")
    return world_size * clip(np.rint(shares), fewest, most)


def resize(batch_size: Numeric, log2_change: Numeric, minimum: Numeric, maximum: Numeric) -> Array:
    """Return the whole batch sizes within the limits to which changes lead.

    Args:
        batch_size: In force, any shape.
        log2_change: Of log2(batch size); where it is not finite, the size is kept.
        minimum: Smallest batch size.
        maximum: Largest.
    """
    change = where(isfinite(log2_change), log2_change, 0.0)
    factor = np.power(2.0, clip(change, -_MOST_DOUBLINGS, _MOST_DOUBLINGS))
    return round_batch_size(batch_size * factor, minimum, maximum)


def check_ranks(rank: int, world_size: int) -> None:
    """Raise ConfigurationError unless `0 <= rank < world_size`."""
    if not 0 <= rank < world_size:
        raise ConfigurationError(
            f"Expected 0 <= rank < world_size, got rank {rank} of {world_size}. "
            "Pass those of torch.distributed."
        )


def last_but_one(left: int, largest: int | None, least: int, world_size: int = 1) -> int:
    """Return the size of the step that takes an epoch's last samples, or one half of them.

    Args:
        left: Samples of a step and of the small rest behind it.
        largest: What a step may hold at most; None: anything.
        least: What a step may hold at least: where two of no fewer cannot be made, one takes all.
        world_size: Ranks that share it equally where there is another step behind it.
    """
    if largest is None or left <= largest:
        return left
    half = -(-left // (2 * world_size)) * world_size
    return half if left - half >= least else left


def check_micro_batch_size(micro_batch_size: int | None) -> None:
    """Raise ConfigurationError for a limit below one sample."""
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ConfigurationError(
            f"Expected a micro_batch_size of at least 1, got {micro_batch_size}. "
            "Pass None for no limit."
        )


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Raise ConfigurationError unless every rank can get the same number of samples."""
    if batch_size < 1 or batch_size % world_size:
        raise ConfigurationError(
            f"Expected a positive batch size that {world_size} ranks can share equally, got "
            f"{batch_size}. Use round_batch_size."
        )


def require_positive(name: str, value: int) -> None:
    """Raise ConfigurationError for a count below 1."""
    if value < 1:
        raise ConfigurationError(f"Expected {name} of at least 1, got {value}. Pass a larger one.")


def _split_evenly(total: int, count: int) -> tuple[int, ...]:
    size, larger = divmod(total, count)
    return (size + 1,) * larger + (size,) * (count - larger)
