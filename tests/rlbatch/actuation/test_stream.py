import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rlbatch.actuation.stream import ElasticIterable
from rlbatch.errors import ConfigurationError, DeliveryError


class Numbers(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        yield from (torch.tensor(float(n)) for n in range(first, 31, step))


def consume(stream: ElasticIterable, draw: random.Random, limit: int | None = None) -> list[Any]:
    got: list[Any] = []
    for batch in stream:
        delivered = stream.next_delivered()
        assert len(batch) == delivered.micro_size
        got.append((delivered, batch.int().tolist()))
        if delivered.is_last:
            if stream.windows == limit:
                break
            stream.set_batch_size(draw.randint(1, 9))
    return got


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_each_sample_once_and_no_lag(workers: int) -> None:
    stream = ElasticIterable.from_loader(
        DataLoader(Numbers(), 4, num_workers=workers), micro_batch_size=3
    )
    stream.measure_next = lambda window: window % 2 == 0
    sizes = random.Random(3)
    decided = [4, *(sizes.randint(1, 9) for _ in range(60))]
    draw = random.Random(3)
    for epoch in range(2):
        got = consume(stream, draw)
        assert sorted(n for _, batch in got for n in batch) == list(range(31))
        for delivered, batch in got:
            assert delivered.batch_size == decided[delivered.window]
            assert delivered.epoch == epoch
            assert len(batch) <= 3
            if not delivered.window % 2 and delivered.window_samples > 1:
                assert delivered.micro_batches >= 2


def test_the_last_window_can_be_dropped() -> None:
    stream = ElasticIterable.from_loader(DataLoader(Numbers(), 4, drop_last=True))
    assert [len(batch) for batch in stream] == [4] * 7


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_stream_continues_as_if_uninterrupted(stop: int) -> None:
    draw = random.Random(5)
    whole_stream = ElasticIterable(Numbers(), 4)
    whole = [item for _ in range(3) for item in consume(whole_stream, draw)]
    draw = random.Random(5)
    first, done = ElasticIterable(Numbers(), 4), []
    while first.windows < stop:
        done += consume(first, draw, limit=stop)
    second = ElasticIterable(Numbers(), 1)
    second.load_state_dict(first.state_dict())
    second.set_batch_size(draw.randint(1, 9))  # the decision that follows the window
    while second.epoch < 3:
        done += consume(second, draw)
    assert done == whole


def test_misuse_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="elastic_loader"):
        ElasticIterable.from_loader(DataLoader([1, 2], 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="single samples"):
        ElasticIterable.from_loader(DataLoader(Numbers(), None))
    stream = ElasticIterable(Numbers(), 4)
    with pytest.raises(DeliveryError, match="exactly once"):
        stream.next_delivered()
    with pytest.raises(ConfigurationError, match="version"):
        stream.load_state_dict({})
    first, second = iter(stream), iter(stream)
    next(first)
    next(second)
    with pytest.raises(DeliveryError, match="one iterator"):
        next(first)
