"""What integrations share: a prepared loader taken apart, and progress in samples."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from rlbatch.data.loader import loader_options
from rlbatch.data.plain_steps import SampleCount
from rlbatch.data.sample_schedule import SampleScheduler, follows_a_metric
from rlbatch.errors import ConfigurationError

__all__ = [
    "SampleCount",
    "SampleScheduler",
    "follows_a_metric",
    "plain_loader",
    "require_all_samples",
]


def plain_loader(loader: Any, batch_size: int) -> DataLoader[Any]:
    """Return a torch loader of the same samples in the same order, with another batch size.

    Args:
        loader: A torch loader, or one that Accelerate prepared.
        batch_size: Of the new one.

    Raises:
        ConfigurationError: The loader has no sampler that could be taken over, or is over a stream
            of unknown length.
    """
    if isinstance(loader.dataset, IterableDataset):
        return _plain_stream(loader, batch_size)
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
    if shared:
        sampler = _common_order(sampler)
    _require_all_samples(len(sampler), batches)
    return DataLoader(
        loader.dataset, batch_size=batch_size, sampler=sampler, **loader_options(loader)
    )


def _plain_stream(loader: Any, batch_size: int) -> DataLoader[Any]:
    dataset = loader.dataset
    if not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"Expected a stream that knows how many samples an epoch has, by which progress is "
            f"counted, got the IterableDataset {type(dataset).__name__} without __len__. Give it "
            "one; an estimate will do."
        )
    _require_all_samples(len(dataset), loader)
    return DataLoader(dataset, batch_size=batch_size, **loader_options(loader))


def require_all_samples(loader: Any) -> None:
    """Refuse a loader, prepared or not, whose `drop_last` leaves out samples of the next epoch.

    Raises:
        ConfigurationError: It does: its dataset may have grown since the last one.
    """
    if isinstance(loader.dataset, IterableDataset):
        _require_all_samples(len(cast("Any", loader.dataset)), loader)
        return
    batches = loader.batch_sampler
    if type(batches).__name__ == "BatchSamplerShard":  # of Accelerate, on several ranks
        batches = batches.batch_sampler
    _require_all_samples(len(batches.sampler), batches)


def _require_all_samples(samples: int, batches: Any) -> None:
    left = samples % batches.batch_size
    if batches.drop_last and left:
        raise ConfigurationError(
            f"drop_last leaves out {left} samples of each epoch; which ones would depend on batch "
            f"sizes yet to be decided. Set drop_last to False, or use a dataset whose length is a "
            f"multiple of {batches.batch_size}."
        )


def _common_order(sampler: Any) -> Any:
    """Return a sampler whose order is, or will be made, the same on all ranks."""
    if type(sampler).__name__ == "SeedableRandomSampler":  # by its seed and the epoch alone
        sampler.initial_seed = _of_rank_0(sampler.initial_seed)
        sampler.generator = torch.Generator().manual_seed(sampler.initial_seed)
    elif type(sampler).__name__ == "LengthGroupedSampler":
        seed = _of_rank_0(int(torch.randint(2**31, ()).item()))
        sampler.generator = torch.Generator().manual_seed(seed)
    elif isinstance(sampler, RandomSampler) and not sampler.replacement:
        return RandomSampler(sampler.data_source)  # on whose order the ranks will agree
    return sampler


def _of_rank_0(number: int) -> int:
    shared = [number]
    torch.distributed.broadcast_object_list(shared)
    return shared[0]
