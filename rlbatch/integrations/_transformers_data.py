"""What the `Trainer`'s loop is handed in place of its loader and of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError


class MicroBatches:
    """The micro-batches that take the place of one of the Trainer's accumulation steps."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def _refuse(self, *_: Any) -> NoReturn:
        raise ConfigurationError(
            "A method that is overridden above the controller gets several micro-batches at once. "
            "Put yours below it: class MyTrainer(ControlledTrainerMixin, MyPlainTrainer)."
        )

    __getitem__ = __contains__ = __iter__ = keys = items = get = pop = _refuse


def accumulation_slots(micro_batches: int, slots: int) -> list[MicroBatches]:
    """Distribute an optimizer step's micro-batches over the accumulation steps that a loop makes.

    Where there are fewer, the first slots stay empty: the step ends with a backward pass.
    """
    taken = [-(-micro_batches * index // slots) for index in range(slots + 1)]
    bounds = [micro_batches - count for count in reversed(taken)]
    return [MicroBatches(range(start, end)) for start, end in pairwise(bounds)]


class TrainData:
    """What the Trainer iterates over. The elastic loader is made later, with the optimizer.

    Attributes:
        dataset: As the Trainer's own loader.
        prepared: That loader.
        elastic: The one that takes its place.
        is_over: The checkpoint is from behind an epoch's last step: that epoch has yet to end.
    """

    def __init__(self, prepared: Any) -> None:
        """Stand in for a loader."""
        self.dataset, self.prepared = prepared.dataset, prepared
        self.elastic: Any = None
        self.is_over = False

    def __iter__(self) -> Iterator[Any]:
        if self.elastic is None:
            raise ConfigurationError("The loader of a controlled run is there once it has begun.")
        return iter(() if self.is_over else self.elastic)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it."""
        if self.elastic is not None:
            self.elastic.set_epoch(epoch)


@dataclass(frozen=True)
class Step:
    """The micro-batches of one optimizer step, as they arrived.

    Attributes:
        batches: What the loader handed out.
        plans: What each of them was planned to be.
    """

    batches: list[Any]
    plans: list[Delivered]
