"""Makes a DataLoader elastic."""

from __future__ import annotations

from typing import Any, TypeVar

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from rlbatch.actuation.sampler import ElasticBatchSampler
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
    draws the same random numbers and yields the same batches as `loader` does.

    Args:
        loader: A map-style loader that puts its batches together itself.
        batch_size: First batch size on all ranks together; None for the loader's on each rank.
        micro_batch_size: Most samples of one forward pass on one rank; None for no limit.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ConfigurationError: The loader cannot be steered; the message says what to change.
    """
    size = check_steerable(loader)
    old: Any = loader
    sampler = ElasticBatchSampler(
        old.sampler,
        size * world_size if batch_size is None else batch_size,
        micro_batch_size=micro_batch_size,
        drop_last=loader.drop_last,
        rank=rank,
        world_size=world_size,
    )
    sampler.persistent_workers = loader.persistent_workers
    return DataLoader(loader.dataset, batch_sampler=sampler, **loader_options(loader))


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


def check_steerable(loader: Any) -> int:
    """Return the loader's batch size, or raise ConfigurationError if it cannot be steered."""
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            "Expected a loader over a map-style dataset, got one over an IterableDataset, which "
            "has no sampler. Use rlbatch.actuation.ElasticIterable.from_loader(loader)."
        )
    owner = next(kind for kind in type(loader).__mro__ if "__iter__" in vars(kind))
    if owner is not DataLoader:
        raise ConfigurationError(
            f"Expected a plain DataLoader, got a {type(loader).__name__} with an iteration of its "
            "own, which would be lost. Build it with batch_sampler=ElasticBatchSampler(sampler, "
            "batch_size)."
        )
    if not getattr(loader, "in_order", True):
        raise ConfigurationError(
            "Expected a loader that yields batches in order, got in_order=False: what "
            "arrived could not be told. Leave in_order=True."
        )
    if loader.batch_size is not None:
        return loader.batch_size
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        raise ConfigurationError(
            "Expected a loader that puts batches together, got batch_size=None: the dataset "
            "does it itself. Let the dataset return single samples and pass a batch_size."
        )
    if type(batch_sampler) is BatchSampler:
        remedy = "Pass its sampler and batch_size to the DataLoader directly"
    else:
        remedy = "Pass DataLoader(dataset, batch_size, sampler=...)"
    raise ConfigurationError(
        f"Expected a loader made with batch_size, got the batch sampler "
        f"{type(batch_sampler).__name__}, whose batches cannot be regrouped. {remedy}, or "
        "build the loader with batch_sampler=ElasticBatchSampler(sampler, batch_size)."
    )
