"""What integrations share: a prepared loader taken apart, and progress in samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from rlbatch.data.loader import loader_options
from rlbatch.errors import ConfigurationError


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
class SampleCount:
    """Counts the progress of a run in steps of the user's batch size, whatever the real steps are.

    An epoch has as many as in the plain run: the last one may be of fewer samples.

    Attributes:
        base_batch_size: The user's.
        dataset_size: Samples of an epoch.
    """

    base_batch_size: int
    dataset_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the plain run in an epoch."""
        return -(-self.dataset_size // self.base_batch_size)

    def epochs(self, total_steps: int) -> float:
        """Return the epochs of a plain run of so many steps."""
        return total_steps / self.steps_per_epoch

    def steps(self, epoch: int, position: int) -> int:
        """Return the steps of the plain run that are complete.

        Args:
            epoch: Number of the epoch.
            position: Samples of it that were trained on.
        """
        if position >= self.dataset_size:
            return (epoch + 1) * self.steps_per_epoch
        return epoch * self.steps_per_epoch + position // self.base_batch_size

    def limit(self, total_steps: int, epoch: int, position: int) -> int | None:
        """Return the samples left where a run of `total_steps` ends within this epoch, else None.

        Args:
            total_steps: Steps of the plain run.
            epoch: Number of the epoch.
            position: Samples of it that were trained on.
        """
        last, steps = divmod(total_steps, self.steps_per_epoch)
        return None if epoch != last else steps * self.base_batch_size - position


class SampleScheduler:
    """Steps a scheduler, made for steps of the user's batch size, as samples pass.

    Attributes:
        scheduler: The wrapped one.
        made: Steps of the plain run that it stands at.
    """

    def __init__(self, scheduler: Any, due: Callable[[], int]) -> None:
        """Wrap a scheduler.

        Args:
            scheduler: Anything with `step()`.
            due: Returns the steps of the plain run that are complete behind the latest step.
        """
        self.scheduler, self._due, self.made = scheduler, due, 0

    def step(self, *_: Any) -> None:
        """Advance to where the run stands: by none, one or several steps."""
        # One that raises behind its end stays there: rounding may ask for a step more.
        end = getattr(self.scheduler, "total_steps", None) or math.inf
        while self.made < self._due():
            if self.scheduler.last_epoch + 1 < end:
                self.scheduler.step()
            self.made += 1

    def skip(self) -> None:
        """Stand where the run does; what was due and not stepped is left out."""
        self.made = self._due()

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # asked for while it is copied
            raise AttributeError(name)
        return getattr(self.scheduler, name)


def follows_a_metric(scheduler: Any) -> bool:
    """Whether a scheduler is stepped with the results of evaluations, not by steps."""
    return isinstance(scheduler, ReduceLROnPlateau) or type(scheduler).__name__ == "GreedyLR"
