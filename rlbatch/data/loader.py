"""Makes a DataLoader elastic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.errors import ConfigurationError

T = TypeVar("T")


def elastic_loader(
    loader: DataLoader[T],
    batch_size: int | None = None,
    *,
    micro_batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[T]:
    """Return a loader like `loader` whose batch size can change; `loader` is not touched.

    The new loader's `batch_sampler` is an `ElasticBatchSampler`. As long as the size stays, it
    draws the same random numbers and yields the same batches as `loader` does. One that has an
    `ElasticBatchSampler` already is returned itself, with the sizes set.

    The new loader has no `len()`: how many micro-batches an epoch has depends on sizes yet to be
    decided. Count samples: `len(dataset)` and the sampler's `position`.

    Args:
        loader: A map-style loader that puts its batches together itself.
        batch_size: First batch size on all ranks together; None for the loader's on each rank.
        micro_batch_size: Most samples of one forward pass on one rank; None for no limit.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ConfigurationError: The loader cannot be steered; the message says what to change.
    """
    source = batch_source(loader)
    if isinstance(source.batches, ElasticBatchSampler):
        _require_ranks(source.batches, rank, world_size)
        return _adopt(loader, source.batches, batch_size, micro_batch_size)
    sampler = ElasticBatchSampler(
        source.sampler,
        source.batch_size * world_size if batch_size is None else batch_size,
        micro_batch_size=micro_batch_size,
        drop_last=source.drop_last,
        rank=rank,
        world_size=world_size,
    )
    sampler.persistent_workers = loader.persistent_workers
    return DataLoader(loader.dataset, batch_sampler=sampler, **loader_options(loader))


def _require_ranks(batches: ElasticBatchSampler, rank: int, world_size: int) -> None:
    if (batches.rank, batches.world_size) != (rank, world_size):
        raise ConfigurationError(
            f"Expected an ElasticBatchSampler of rank {rank} of {world_size}, got one of rank "
            f"{batches.rank} of {batches.world_size}. Make it with that rank and world_size."
        )


def _adopt(
    loader: DataLoader[T],
    batches: ElasticBatchSampler,
    batch_size: int | None,
    micro_batch_size: int | None,
) -> DataLoader[T]:
    if batch_size is not None:
        batches.set_batch_size(batch_size)
    if micro_batch_size is not None:
        batches.set_micro_batch_size(micro_batch_size)
    batches.persistent_workers = loader.persistent_workers
    return loader


def loader_options(loader: Any) -> dict[str, Any]:
    """Return the options of a loader that have nothing to do with batches."""
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
    }
    if loader.pin_memory_device:  # deprecated: named only where it is in use
        options["pin_memory_device"] = loader.pin_memory_device
    return options


class BatchSource(NamedTuple):
    """What a loader's batches are made of.

    Attributes:
        sampler: Gives the order of an epoch.
        batch_size: Samples of a batch, on this rank.
        drop_last: Whether a last batch of fewer samples is left out.
        batches: The loader's batch sampler.
    """

    sampler: Iterable[int]
    batch_size: int
    drop_last: bool
    batches: Any


def batch_source(loader: Any) -> BatchSource:
    """Return what a map-style loader's batches are made of.

    Raises:
        ConfigurationError: They cannot be made in other sizes; the message says what to change.
    """
    check_is_loader(loader)
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            "Expected a loader over a map-style dataset, got one over an IterableDataset, which "
            "has no sampler. Use rlbatch.data.ElasticIterable.from_loader(loader)."
        )
    check_in_order(loader)
    batches = loader.batch_sampler
    if isinstance(batches, ElasticBatchSampler):
        return BatchSource(
            batches.sampler,
            batches.requested_batch_size // batches.world_size,
            batches.drop_last,
            batches,
        )
    check_owner(loader)
    if batches is None:
        raise ConfigurationError(
            "Expected a loader that puts batches together, got batch_size=None: the dataset "
            "does it itself. Let the dataset return single samples and pass a batch_size."
        )
    if type(batches) is not BatchSampler:
        raise ConfigurationError(
            f"Expected a loader made with batch_size, got the batch sampler "
            f"{type(batches).__name__}, whose batches cannot be regrouped. Pass "
            "DataLoader(dataset, batch_size, sampler=...), or build the loader with "
            "batch_sampler=ElasticBatchSampler(sampler, batch_size)."
        )
    return BatchSource(batches.sampler, batches.batch_size, batches.drop_last, batches)


def check_is_loader(loader: Any) -> None:
    """Raise ConfigurationError for anything but a torch DataLoader."""
    if isinstance(loader, DataLoader):
        return
    name = type(loader).__name__
    remedy = "Give the DataLoader of the training data: DataLoader(dataset, batch_size=...)."
    if hasattr(loader, "__iter__") and isinstance(getattr(loader, "loader", None), DataLoader):
        remedy = (
            f"Give the DataLoader within it; the {name} may wrap what comes back, where it takes "
            "no batch ahead of the loop."
        )
    raise ConfigurationError(f"Expected a torch DataLoader, got {name}. {remedy}")


def check_owner(loader: Any) -> None:
    """Raise ConfigurationError for a loader with an iteration of its own."""
    owner = next(kind for kind in type(loader).__mro__ if "__iter__" in vars(kind))
    if owner is not DataLoader:
        raise ConfigurationError(
            f"Expected a plain DataLoader, got a {type(loader).__name__} with an iteration of its "
            "own, which would be lost. Build it with batch_sampler=ElasticBatchSampler(sampler, "
            "batch_size)."
        )


def check_in_order(loader: Any) -> None:
    """Raise ConfigurationError for a loader whose workers overtake each other."""
    if not getattr(loader, "in_order", True):
        raise ConfigurationError(
            "Expected a loader that yields batches in order, got in_order=False: what "
            "arrived could not be told. Leave in_order=True."
        )
