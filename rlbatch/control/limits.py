"""The batch sizes that a controller may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlbatch.arguments import real_number, require_switch, require_whole, shown
from rlbatch.errors import ConfigurationError

_LARGEST_GROWTH, _LARGEST_SHRINKAGE = 64, 16


@dataclass(frozen=True)
class Limits:
    """Limits of the batch size and of what one pass takes.

    Attributes:
        min_batch_size: Smallest batch size; None: a sixteenth of the user's, or the user's own in a
            run without a target or budget.
        max_batch_size: Largest; None: 64 times the user's. At most the data set's size in any case.
        micro_batch_size: Most samples in one forward and backward pass; None: no limit. Set it to
            what fits into the device's memory: larger batches are then accumulated. `auto` finds
            it out, with passes inside of `BatchController.within_memory`.
        divisible: The loss of a batch is a mean, to which parts add up with their weights. False
            for one that compares the samples of a batch (contrastive, triplet, Dice): then no batch
            is divided, and none exceeds `micro_batch_size`.
        memory_limit: Bytes that `auto` may use; None: what is free on a GPU, and half of a
            machine's memory on a CPU, where the bytes saved for the backward pass are counted.
    """

    min_batch_size: int | None = None
    max_batch_size: int | None = None
    micro_batch_size: int | Literal["auto"] | None = None
    divisible: bool = True
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number of samples or bytes; keep numbers as Python's own."""
        for name in ("min_batch_size", "max_batch_size", "micro_batch_size"):
            value: object = getattr(self, name)
            is_auto = name == "micro_batch_size" and isinstance(value, str) and value == "auto"
            if value is not None and not is_auto:
                object.__setattr__(self, name, require_samples(name, value))
        object.__setattr__(self, "divisible", require_switch("divisible", self.divisible))
        low, high = self.min_batch_size, self.max_batch_size
        if low is not None and high is not None and low > high:
            raise ConfigurationError(
                f"min_batch_size must be at most max_batch_size, got {low} and {high}."
            )
        if not self.divisible and self.micro_batch_size == "auto":
            raise ConfigurationError(
                "micro_batch_size='auto' divides a batch that does not fit, and with "
                "divisible=False none is divided. Give the number of samples that fits."
            )
        self._check_memory_limit()

    def _check_memory_limit(self) -> None:
        if self.memory_limit is None:
            return
        limit = real_number(self.memory_limit)  # 8e9 is as good as an int
        if limit is None or not 1 <= limit < math.inf:
            raise ConfigurationError(
                f"memory_limit must be a number of bytes, got {shown(self.memory_limit)}."
            )
        object.__setattr__(self, "memory_limit", int(limit))

    @property
    def known_micro_batch_size(self) -> int | None:
        """`micro_batch_size` where nothing can find it out: a framework runs the passes.

        Raises:
            ConfigurationError: It is `auto`.
        """
        if self.micro_batch_size == "auto":
            raise ConfigurationError(
                "micro_batch_size='auto' needs a loop whose passes stand within "
                "BatchController.within_memory(), and this framework runs them itself. Give a "
                "number of samples that fits."
            )
        return self.micro_batch_size

    def largest_step(self, world_size: int = 1) -> int | None:
        """Return what no step may exceed, not even by an epoch's rest; None: nothing."""
        if self.divisible or not isinstance(self.micro_batch_size, int):
            return None
        return self.micro_batch_size * world_size

    def bounds(
        self, base_batch_size: int, dataset_size: int, world_size: int = 1, *, may_shrink: bool
    ) -> tuple[int, int]:
        """Return the smallest and largest batch size for a user's batch size and data set.

        Every rank gets a sample of each batch.

        Args:
            base_batch_size: The user's.
            dataset_size: Samples of an epoch.
            world_size: Ranks that share each batch.
            may_shrink: Whether sizes below the user's are of use where no limit is set.

        Raises:
            ConfigurationError: The user's batch size lies outside of them.
        """
        lowest = max(1, base_batch_size // _LARGEST_SHRINKAGE) if may_shrink else base_batch_size
        low = max(self.min_batch_size or lowest, world_size)
        high = self.max_batch_size or _LARGEST_GROWTH * base_batch_size
        high = min(high, max(dataset_size, base_batch_size))
        high = min(high, self.largest_step(world_size) or high)
        if not low <= base_batch_size <= high:
            raise ConfigurationError(
                f"The loader's batch size {base_batch_size} must lie between min_batch_size {low} "
                f"and max_batch_size {high}. Move the limits."
            )
        return low, high


def require_samples(name: str, value: object) -> int:
    """Return a number of samples as an int.

    Raises:
        ConfigurationError: It is no whole number of at least 1.
    """
    return require_whole(name, value, "a whole number of samples")
