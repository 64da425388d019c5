"""What integrations share: a prepared loader taken apart, whole windows, progress in samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from rlbatch.controller import BatchController
from rlbatch.data.delivery import Delivered
from rlbatch.data.loader import loader_options
from rlbatch.data.plain_steps import SampleCount
from rlbatch.data.sample_schedule import SampleScheduler, follows_a_metric
from rlbatch.errors import ConfigurationError, DeliveryError

__all__ = [
    "SampleCount",
    "SampleScheduler",
    "Window",
    "WindowController",
    "follows_a_metric",
    "plain_loader",
]


def plain_loader(loader: Any, batch_size: int) -> DataLoader[Any]:
    """Return a torch loader of the same samples in the same order, with another batch size.

    Args:
        loader: A torch loader, or one that Accelerate prepared.
        batch_size: Of the new one.

    Raises:
        ConfigurationError: The loader has no sampler that could be taken over.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            "Expected a map-style dataset, got an IterableDataset, in which no place can be found "
            "again. Give a dataset with __len__ and __getitem__."
        )
    batches = loader.batch_sampler
    shared = type(batches).__name__ == "BatchSamplerShard"
    if shared:  # of Accelerate, on several ranks
        if batches.split_batches:
            raise ConfigurationError(
                "Expected a loader of each rank's own batches, got one that splits batches. Set "
                "split_batches to False, and divide its batch size by the number of ranks."
            )
        batches = batches.batch_sampler
    if type(batches) is not BatchSampler:
        raise ConfigurationError(
            f"Expected a loader made with a batch_size, got the batch sampler "
            f"{type(batches).__name__}, whose batches cannot be regrouped. Give the loader a "
            "sampler and a batch_size instead."
        )
    sampler: Any = batches.sampler
    if shared and isinstance(sampler, RandomSampler) and not sampler.replacement:
        sampler = RandomSampler(sampler.data_source)  # whose order the ranks will agree on
    left = len(sampler) % batches.batch_size
    if batches.drop_last and left:
        raise ConfigurationError(
            f"drop_last leaves out {left} samples of each epoch; which ones would depend on batch "
            f"sizes yet to be decided. Set drop_last to False, or use a dataset whose length is a "
            f"multiple of {batches.batch_size}."
        )
    return DataLoader(
        loader.dataset, batch_size=batch_size, sampler=sampler, **loader_options(loader)
    )


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step, as they arrived.

    Attributes:
        batches: What the loader handed out.
        plans: What each of them was planned to be.
    """

    batches: list[Any]
    plans: list[Delivered]

    @property
    def position(self) -> int:
        """Samples of the epoch behind this step."""
        return self.plans[0].step_start + self.plans[0].step_samples


class WindowController(BatchController):
    """A controller for loops that others wrote: they take whole windows and step by themselves.

    For each optimizer step: `next_step`, `begin_step`, `after_backward` for each micro-batch,
    the optimizer's step, `end_step`. Between `attach` and `detach` the learning rate is coupled
    to the batch size within each step of the optimizer.
    """

    _arrived: Delivered | None = None
    _step_is_open = False
    _detach: Callable[[], None] | None = None

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to `next_step`."""
        self._arrived = delivered

    def begin_epoch(self) -> None:
        """An iteration over the loader begins; what is left of a step under way is dropped."""
        if self._step_is_open:
            self._step_is_open = False
            self.optimizer.zero_grad()
        super().begin_epoch()

    def next_step(self, batches: Iterator[Any]) -> Window | None:
        """Return the next optimizer step's micro-batches, or None when the epoch is over.

        Raises:
            DeliveryError: The epoch ended within a window, or the one before was not ended.
        """
        window = Window([], [])
        for batch in batches:
            if self._step_is_open:  # and no new iteration has begun with this batch
                raise DeliveryError(
                    "The optimizer has not stepped on the batch before. Leave the loop's own "
                    "settings of gradient accumulation as they are while it runs."
                )
            delivered = self._arrived
            if delivered is None:
                break
            window.batches.append(batch)
            window.plans.append(delivered)
            self._arrived = None
            if delivered.is_last:
                self._step_is_open = True
                return window
        if window.batches:
            raise DeliveryError(
                f"Expected {window.plans[0].micro_batches} micro-batches of an optimizer step, got "
                f"{len(window.batches)}. Iterate over the loader that the controller made, alone."
            )
        return None

    def begin_step(self, window: Window, weights: Sequence[float]) -> None:
        """Announce an optimizer step.

        Args:
            window: Of this step.
            weights: What share each micro-batch has in the gradient; of any scale.
        """
        plan = window.plans[0]
        scale = plan.step_samples / sum(weights)
        sizes: Any = [weight * scale for weight in weights]
        if min(sizes) < 1:
            sizes = [plan.micro_size for plan in window.plans]
        self._parts.begin_step(plan.batch_size, sizes)

    def after_backward(self, loss: Tensor) -> None:
        """Take a micro-batch's mean loss, after its backward pass, before anything clips."""
        self._parts.after_backward(loss)

    def end_step(self, window: Window) -> None:
        """Count an optimizer step that was made; after the last one of a chunk, decide."""
        self._step_is_open = False
        self._end_step(window.plans[0])

    def limit_next(self, samples: int) -> None:
        """Let the coming steps have so many samples at most: the run ends behind them."""
        sampler = self._require_loader().sampler
        sampler.set_batch_size(max(1, min(self.batch_size, samples)))

    def attach(self) -> None:
        """Couple the learning rate within each of the optimizer's steps, from now on."""
        self.detach()
        self._detach = self._parts.rate.attach()

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()
