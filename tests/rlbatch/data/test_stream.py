import io
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rlbatch.data.stream import ElasticIterable
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
            if stream.steps == limit:
                break
            stream.set_batch_size(draw.randint(1, 9))
    return got


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_each_sample_once_and_no_lag(workers: int) -> None:
    stream = ElasticIterable.from_loader(
        DataLoader(Numbers(), 4, num_workers=workers), micro_batch_size=3
    )
    sizes = random.Random(3)
    decided = [4, *(sizes.randint(1, 9) for _ in range(60))]
    draw = random.Random(3)
    for epoch in range(2):
        got = consume(stream, draw)
        assert sorted(n for _, batch in got for n in batch) == list(range(31))
        for delivered, batch in got:
            assert delivered.batch_size == decided[delivered.step]
            assert delivered.epoch == epoch
            assert len(batch) <= 3
            assert delivered.micro_batches == -(-delivered.step_samples // 3)


def test_the_last_step_can_be_dropped() -> None:
    stream = ElasticIterable.from_loader(DataLoader(Numbers(), 4, drop_last=True))
    assert [len(batch) for batch in stream] == [4] * 7


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_stream_continues_as_if_uninterrupted(stop: int) -> None:
    draw = random.Random(5)
    whole_stream = ElasticIterable(Numbers(), 4)
    whole = [item for _ in range(3) for item in consume(whole_stream, draw)]
    draw = random.Random(5)
    first, done = ElasticIterable(Numbers(), 4), []
    while first.steps < stop:
        done += consume(first, draw, limit=stop)
    second = ElasticIterable(Numbers(), 1)
    second.load_state_dict(first.state_dict())
    second.set_batch_size(draw.randint(1, 9))  # the decision that follows the step
    while second.epoch < 3:
        done += consume(second, draw)
    assert done == whole


class Shuffled(IterableDataset[Tensor]):
    """Each worker reads its share, in an order drawn when the epoch begins, with noise."""

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share = torch.arange(first, 40, step)
        for n in share[torch.randperm(len(share))].tolist():
            yield torch.tensor([float(n), float(torch.rand(()))])


class Own(Shuffled):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.rng = random.Random(torch.initial_seed())

    def __iter__(self) -> Iterator[Tensor]:
        order = list(range(40))
        self.rng.shuffle(order)
        yield from (torch.tensor([float(n), self.rng.random()]) for n in order)


def samples_of(stream: ElasticIterable, steps: int) -> Iterator[Any]:
    """Consume up to a number of steps, asking for another size behind each."""
    while stream.steps < steps:
        for batch in stream:
            delivered = stream.next_delivered()
            yield delivered, batch.tolist()
            if delivered.is_last:
                stream.set_batch_size(random.Random(delivered.step).randint(1, 9))
                if stream.steps >= steps:
                    break


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("dataset", "workers", "stop"),
    [*((Own, 0, stop) for stop in range(1, 18)), (Shuffled, 2, 3), (Shuffled, 2, 9), (Own, 0, 12)],
)
def test_a_random_stream_is_resumed_with_the_same_samples(
    dataset: type[Shuffled], workers: int, stop: int, drop_last: bool
) -> None:
    def make(seed: int) -> ElasticIterable:
        torch.manual_seed(seed)
        loader = DataLoader(dataset(), 4, num_workers=workers, drop_last=drop_last)
        return ElasticIterable.from_loader(loader, micro_batch_size=3)

    whole = list(samples_of(make(1), 20))
    first = make(1)
    done = list(samples_of(first, stop))
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = make(2)
    second.load_state_dict(torch.load(saved, weights_only=True))
    done += samples_of(second, 20)
    assert done == whole


def test_a_step_that_is_not_whole_comes_again_with_its_size() -> None:
    first = ElasticIterable(Numbers(), 8, micro_batch_size=3)
    batches = iter(first)
    got = [next(batches) for _ in range(4)]  # one step of three micro-batches, and one more
    for _ in got:
        first.next_delivered()
    first.set_batch_size(2)
    second = ElasticIterable(Numbers(), 8, micro_batch_size=3)
    second.load_state_dict(first.state_dict())
    plans = [(second.next_delivered(), batch.tolist()) for batch in second]
    assert [d.step_samples for d, _ in plans if d.is_last][:3] == [8, 2, 2]
    assert [n for _, batch in plans for n in batch] == list(range(8, 31))


def test_a_stream_that_does_not_repeat_is_told() -> None:
    class Hidden(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from (torch.tensor(random.SystemRandom().random()) for _ in range(40))

    first = ElasticIterable(Hidden(), 8)
    next(samples_of(first, 1))
    second = ElasticIterable(Hidden(), 8)
    second.load_state_dict(first.state_dict())
    with pytest.warns(RuntimeWarning, match="sample 8 of the stream is another one"):
        next(iter(second))


class Unshared(IterableDataset[Tensor]):
    """Each worker reads everything, unless somebody tells it not to."""

    share = slice(None)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(30.0)[self.share]


def share_out(worker_id: int) -> None:
    worker: Any = get_worker_info()
    worker.dataset.share = slice(worker_id, None, worker.num_workers)


def test_workers_that_read_the_same_samples_are_refused() -> None:
    stream = ElasticIterable.from_loader(DataLoader(Unshared(), 4, num_workers=2))
    with pytest.raises(ConfigurationError, match=r"worker\.num_workers"):
        next(iter(stream))
    alone = ElasticIterable.from_loader(DataLoader(Unshared(), 4, num_workers=1))
    assert sum(len(batch) for batch in alone) == 30


def test_workers_shared_out_by_worker_init_fn_are_fine() -> None:
    loader = DataLoader(Unshared(), 4, num_workers=2, worker_init_fn=share_out)
    batches = list(ElasticIterable.from_loader(loader))
    assert sorted(n for batch in batches for n in batch.tolist()) == list(range(30))
    assert [len(batch) for batch in batches] == [4] * 7 + [2]


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
