"""The user's data loader made elastic, telling a controller what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlbatch.actuation.delivery import Delivered
from rlbatch.actuation.loader import elastic_loader
from rlbatch.actuation.sampler import ElasticBatchSampler
from rlbatch.errors import ConfigurationError


class Consumer(Protocol):
    """What is told about the micro-batches that a loader hands out."""

    def begin_epoch(self) -> None:
        """An iteration begins."""
        ...

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to the loop."""
        ...

    def end_epoch(self) -> None:
        """The iteration has nothing more."""
        ...


class ControlledLoader:
    """Iterates like the loader that it was made from, in micro-batches of changing size.

    There is no `len()`: the number of micro-batches depends on sizes yet to be decided.

    Attributes:
        dataset: As the user's loader.
        sampler: Decides which samples come together.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        consumer: Consumer,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        measure: Callable[[int], bool],
    ) -> None:
        """Make a loader elastic; it is not used itself any more.

        Args:
            loader: The user's.
            consumer: Is told about each micro-batch.
            batch_size: First batch size.
            micro_batch_size: Most samples of one pass; None for no limit.
            measure: Says of an optimizer step, by its number, whether its batch is divided so that
                gradient noise can be measured.

        Raises:
            ConfigurationError: The loader's batches cannot be resized.
        """
        self.dataset = loader.dataset
        self._consumer = consumer
        self._measure = measure
        self._elastic = elastic_loader(loader, batch_size, micro_batch_size=micro_batch_size)
        self.sampler = cast("ElasticBatchSampler", self._elastic.batch_sampler)
        self.sampler.measure_next = self._issue
        self._issued = -1  # number of the latest window that was issued
        self._rng_state: Tensor | None = None  # to be put back when the loop goes on

    def __iter__(self) -> Iterator[Any]:
        """Hand out one epoch, or what is left of an interrupted one."""
        self._consumer.begin_epoch()
        rng_state, self._rng_state = self._rng_state, None
        if rng_state is not None:
            torch.set_rng_state(rng_state)
        within = self.sampler.position > 0 and rng_state is not None
        batches = iter(self._elastic)
        if within and rng_state is not None:
            # Each iterator draws a seed for its workers; the interrupted one has done so already.
            torch.set_rng_state(rng_state)
        for batch in batches:
            self._consumer.arrive(self.sampler.next_delivered())
            yield batch
        self._consumer.end_epoch()

    @property
    def next_step(self) -> int:
        """Number of the optimizer step that a change of the batch size takes effect at."""
        return max(self.sampler.windows, self._issued + 1)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it."""
        set_epoch = getattr(self.sampler.sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data behind the last whole optimizer step."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any], rng_state: Tensor) -> None:
        """Continue from there with the next iteration.

        Args:
            state: What `state_dict` returned.
            rng_state: Of torch's global generator at that time; put back when the loop goes on.
        """
        self.sampler.load_state_dict(state)
        self._issued = -1
        self._rng_state = rng_state

    def _issue(self, window: int) -> bool:
        self._issued = window
        return self._measure(window)


def require_single_process() -> None:
    """Refuse a training that several processes share: each would decide for itself.

    Raises:
        ConfigurationError: `torch.distributed` is in use with more than one process.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        world_size = distributed.get_world_size()
        if world_size > 1:
            raise ConfigurationError(
                f"BatchController steers one process, and torch.distributed has {world_size}. Use "
                "rlbatch.actuation.ElasticBatchSampler with the decisions of one rank, broadcast."
            )
