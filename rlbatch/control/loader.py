"""The user's data loader made elastic, telling a controller what it hands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from rlbatch.control.checks import check_order, check_sampler
from rlbatch.control.config import ControllerConfig
from rlbatch.control.elastic_source import elastic_source
from rlbatch.control.loader_view import LoaderView
from rlbatch.control.random_state import RandomState
from rlbatch.control.ranks import Ranks
from rlbatch.control.users_parts import smallest_part
from rlbatch.data.delivery import Delivered
from rlbatch.data.loader import batch_source, check_is_loader
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

    def leave(self) -> None:
        """The loop has left the iteration, at its end or before."""
        ...


class ControlledLoader(LoaderView):
    """Iterates like the loader that it was made from, in micro-batches of changing size.

    Attributes:
        dataset: As the user's loader.
        sampler: Decides which samples come together.
        goes_on_from: Random states that are saved in place of those between two steps; None: none.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        consumer: Consumer,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        ranks: Ranks | None = None,
    ) -> None:
        """Make a loader elastic; it is not used itself any more.

        Args:
            loader: The user's.
            consumer: Is told about each micro-batch.
            batch_size: First batch size.
            micro_batch_size: Most samples of one pass; None for no limit.
            ranks: The processes that share each batch, of a loader from `Ranks.share`; None for
                this one alone.

        Raises:
            ConfigurationError: The loader's batches cannot be resized.
        """
        super().__init__(loader)
        self.dataset = loader.dataset
        self._consumer = consumer
        ranks = Ranks() if ranks is None else ranks
        self._batches, self.sampler = elastic_source(loader, batch_size, micro_batch_size, ranks)
        if not isinstance(loader.dataset, IterableDataset):
            self._check_groups(loader, ranks)
        self._world_size = ranks.world_size
        self._measure()
        self._left_out, self._skipped = 0, False  # steps that the loop has skipped
        self._current: Iterator[Any] = iter(())
        self._resume_at: RandomState | None = None  # to be put back when the loop goes on
        self._before_step: RandomState | None = None  # when the latest step was asked for
        self.goes_on_from: RandomState | None = None
        self._repeats = False  # the step under way is to come again
        self._step_open = False  # the loop has begun a step and not stepped with it

    def __iter__(self) -> Iterator[Any]:
        """Hand out one epoch, or what is left of an interrupted one.

        As with torch's own, random numbers are drawn here already: a second loader of the same loop
        (`zip`) draws its own before the first batch of either.
        """
        self._measure()
        self._consumer.begin_epoch()
        self._step_open = False
        self._current = self._start()
        return self._watched([self._current])

    def _watched(self, begun: list[Iterator[Any]]) -> Iterator[Any]:
        try:
            yield from self._hand_out(begun)
        finally:
            self._consumer.leave()

    def _measure(self) -> None:
        """Ask how many samples the coming epoch has: a dataset may have grown."""
        size, samples = loader_sizes(self._users)
        self.sampler.epoch_size = samples
        self.sampler.least_rest = least_rest(samples, size, self._world_size)

    def _hand_out(self, begun: list[Iterator[Any]]) -> Iterator[Any]:
        batches = begun.pop()  # nobody else may hold it: see where it is deleted
        sampler, arrive = self.sampler, self._consumer.arrive
        is_first = between = True
        while True:
            if between:
                self._before_step = None  # its memory is taken once more, while it is in a cache
                self._before_step = RandomState.now()
            try:
                batch = next(batches)
            except StopIteration:
                break
            if is_first:
                is_first = False
                self._take_back(sampler.begun_at)
            self._step_open = True
            delivered = sampler.next_delivered()
            between = delivered.position + 1 == delivered.micro_batches
            arrive(delivered)
            yield batch
            if self._skipped:
                self._skipped, between = False, True
            if self._repeats:
                self._repeats, is_first, between = False, True, True
                self.load_state_dict(self.state_dict())
                self._current = iter(())
                del batch, batches  # and with it the workers
                self._current = batches = self._start()
        self._consumer.end_epoch()

    def _take_back(self, begun_at: Tensor | None) -> None:
        """The order was drawn in `next`, if so, and is not drawn again in a resumed run."""
        if begun_at is not None and self._before_step is not None:
            self._before_step = self._before_step._replace(cpu=begun_at)

    def _check_groups(self, loader: DataLoader[Any], ranks: Ranks) -> None:
        batches: Any = self.sampler
        order, dataset = batches.sampler, loader.dataset
        check_sampler(order, batches.requested_batch_size // ranks.world_size)
        batches.on_first_step = lambda indices: check_order(order, dataset, indices)

    def _start(self) -> Iterator[Any]:
        resume_at, self._resume_at = self._resume_at, None
        within = self.sampler.resumes_within_epoch
        if resume_at is not None:
            resume_at.restore()
        elif within:  # put back before, and drawn from since
            self.sampler.resume_as_now()
        before = RandomState.now()
        batches = iter(self._batches)
        if within:
            # Each iterator draws a seed for its workers; the interrupted one has done so already.
            before.restore()
        return batches

    def repeat_step(self, micro_batch_size: int | None) -> None:
        """Hand out the step under way once more, from its first sample, in smaller parts."""
        self.sampler.set_micro_batch_size(micro_batch_size)
        self._repeats = True

    def end_step(self) -> None:
        """Take note that the loop has stepped with what it was handed."""
        self._step_open = False

    def skip_step(self) -> None:
        """Take note that the loop leaves out the step under way; its other parts do not come."""
        while self.sampler.within_step:
            next(self._current)
            self.sampler.next_delivered()
        self._left_out += 1
        self._skipped, self._step_open = True, False

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next one."""
        return self.sampler.epoch

    @property
    def next_step(self) -> int:
        """Number of the optimizer step that a change of the batch size takes effect at."""
        return self.sampler.next_step - self._left_out

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the optimizer steps from `next_step` on."""
        self.sampler.set_batch_size(batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, or the stream's dataset, the epoch, if it shuffles by it."""
        owner = getattr(self.sampler, "sampler", self.dataset)
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data after the last optimizer step, and torch's random states.

        A step that the loop has in its hands comes again in the resumed run.
        """
        again = self._before_step if self._step_open else None
        now = again or self.goes_on_from or RandomState.now()
        return {
            **self.sampler.state_dict(None if again is None else again.cpu),
            "left_out": self._left_out,
            **{"rng": now.cpu, "cuda_rng": now.cuda},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there with the next iteration, with the same random numbers."""
        rng, *of_devices = (s.cpu() for s in (state["rng"], *state["cuda_rng"]))  # map_location
        torch.Generator().set_state(rng)  # it is put back later: fail now if it cannot be
        self.sampler.load_state_dict(state)
        self._left_out, self._step_open = state.get("left_out", 0), False
        self._resume_at = RandomState(rng, of_devices)

    def restore_random_state(self) -> None:
        """Put back now what `load_state_dict` took: something draws before the next iteration."""
        if self._resume_at is not None:
            self._resume_at.restore()
            self._resume_at = None


def loader_sizes(loader: DataLoader[Any]) -> tuple[int, int]:
    """Return a loader's batch size and the samples of one of its epochs.

    Raises:
        ConfigurationError: Its batches cannot be resized, or the samples are not known.
    """
    check_is_loader(loader)
    batch_size = loader.batch_size
    if isinstance(loader.dataset, IterableDataset):
        source: Any = loader.dataset
        if batch_size is None:
            raise ConfigurationError(
                "Expected a loader that puts batches together, got batch_size=None: the dataset "
                "does it itself. Let it yield single samples and pass a batch_size."
            )
    else:
        found = batch_source(loader)
        batch_size, source = found.batch_size, found.sampler
    try:
        return batch_size, len(source)
    except TypeError:
        raise ConfigurationError(
            f"Expected a {type(source).__name__} that knows how many samples an epoch has, by "
            "which progress is counted, and it has no __len__. Give it one; an estimate will do."
        ) from None


def least_rest(samples: int, batch_size: int, world_size: int) -> int:
    """Return the fewest samples that a step may be left with at the end of an epoch.

    No rank is left with a single one, unless the plain loop is: there each has as many, some of
    them twice.

    Args:
        samples: Of an epoch.
        batch_size: Of the plain loop, on one rank.
        world_size: Ranks that share each step.
    """
    plain = -(-samples // world_size) % batch_size
    return world_size if 1 in (plain, batch_size) else 2 * world_size


def sizes_for_model(
    config: ControllerConfig,
    model: nn.Module,
    base_batch_size: int,
    dataset_size: int,
    world_size: int,
) -> ControllerConfig:
    """Return the settings without batch sizes on which the model cannot be trained.

    Args:
        config: The settings.
        model: What is trained.
        base_batch_size: The user's.
        dataset_size: Samples of an epoch.
        world_size: Ranks that share each batch.
    """
    least = smallest_part(model) * world_size
    low, _ = config.bounds(base_batch_size, dataset_size, world_size)
    if low >= least or base_batch_size < least:
        return config
    return replace(config, limits=replace(config.limits, min_batch_size=least))
