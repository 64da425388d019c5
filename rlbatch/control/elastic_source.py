"""A torch loader whose batch size can be changed, whatever its dataset is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset

from rlbatch.control.ranks import Ranks
from rlbatch.data.elastic import ElasticSource
from rlbatch.data.loader import elastic_loader
from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.data.stream import ElasticIterable
from rlbatch.errors import ConfigurationError


def elastic_source(
    loader: DataLoader[Any], batch_size: int, micro_batch_size: int | None, ranks: Ranks
) -> tuple[Iterable[Any], ElasticSource]:
    """Return what yields batches of a size that can be changed, and where it is changed.

    Args:
        loader: The user's, whose batches can be resized.
        batch_size: First batch size.
        micro_batch_size: Most samples of one pass; None for no limit.
        ranks: The processes that share each batch.

    Raises:
        ConfigurationError: Several ranks would share a stream.
    """
    if not isinstance(loader.dataset, IterableDataset):
        batches = elastic_loader(
            loader,
            batch_size,
            micro_batch_size=micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        return batches, cast("ElasticBatchSampler", batches.batch_sampler)
    if ranks.world_size > 1:
        raise ConfigurationError(
            "Expected a map-style dataset, of which each rank can take its share, got an "
            f"IterableDataset on {ranks.world_size} ranks. Index its samples, or train on one rank."
        )
    stream = ElasticIterable.from_loader(loader, batch_size, micro_batch_size=micro_batch_size)
    return stream, stream
