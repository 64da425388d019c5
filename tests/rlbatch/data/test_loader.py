import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rlbatch.data.delivery import Delivered
from rlbatch.data.loader import batch_source, elastic_loader
from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.errors import ConfigurationError

SIZE = 43


class Noisy(Dataset[Tensor]):
    """Samples that show their index and the random numbers of who loads them."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), float(torch.rand(()))])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[..., DataLoader[Tensor]]] = {
    "plain": lambda **k: DataLoader(Noisy(), 8, **k),
    "shuffle": lambda **k: DataLoader(Noisy(), 8, shuffle=True, **k),
    "generator": lambda **k: DataLoader(Noisy(), 8, shuffle=True, generator=generator(), **k),
    "replacement": lambda **k: DataLoader(
        Noisy(), 8, sampler=RandomSampler(range(SIZE), replacement=True, num_samples=50), **k
    ),
    "weighted": lambda **k: DataLoader(
        Noisy(), 8, sampler=WeightedRandomSampler([1.0] * SIZE, 30), **k
    ),
    "subset": lambda **k: DataLoader(Noisy(), 8, sampler=SubsetRandomSampler(range(5, 30)), **k),
}
OPTIONS = {
    "here": {},
    "workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
}


def sampler_of(loader: Any) -> ElasticBatchSampler:
    assert isinstance(loader.batch_sampler, ElasticBatchSampler)
    return loader.batch_sampler


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LOADERS)
def test_with_a_constant_size_the_batches_are_the_original_s(
    name: str, options: str, drop_last: bool
) -> None:
    def three_epochs(elastic: bool) -> list[Tensor]:
        torch.manual_seed(3)
        loader = LOADERS[name](drop_last=drop_last, **OPTIONS[options])
        used = elastic_loader(loader) if elastic else loader
        batches = [batch for _ in range(3) for batch in used]
        return [*batches, torch.rand(3)]  # and the global state is the same afterwards

    for got, expected in zip(three_epochs(True), three_epochs(False), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_delivered_is_what_was_recorded(options: str) -> None:
    loader = elastic_loader(LOADERS["shuffle"](**OPTIONS[options]), micro_batch_size=5)
    sampler = sampler_of(loader)
    draw = random.Random(2)
    decided: list[int] = []
    for epoch in range(3):
        seen: list[int] = []
        for batch in loader:
            delivered = sampler.next_delivered()
            assert len(batch) == delivered.micro_size
            assert delivered.first_sample == len(seen)
            assert delivered.epoch == epoch
            seen += batch[:, 0].int().tolist()
            if delivered.is_last:
                assert sampler.position == len(seen)
                decided.append(draw.randint(1, 16))
                sampler.set_batch_size(decided[-1])
            # Prefetched steps have older sizes, and say so.
            assert delivered.batch_size in {8, *decided}
        assert sorted(seen) == list(range(SIZE))


@pytest.mark.parametrize(("options", "lag"), [("here", 0), ("workers", 4), ("persistent", 6)])
def test_a_change_arrives_behind_what_was_prefetched(options: str, lag: int) -> None:
    loader = elastic_loader(LOADERS["shuffle"](**OPTIONS[options]), batch_size=2)
    sampler = sampler_of(loader)
    sizes: list[int] = []
    for batch in loader:
        delivered = sampler.next_delivered()
        assert len(batch) == delivered.step_samples
        sizes.append(delivered.batch_size)
        if delivered.step == 3:
            sampler.set_batch_size(5)
    assert sizes[: 4 + lag] == [2] * (4 + lag)
    assert set(sizes[4 + lag :]) == {5}


@pytest.mark.parametrize("options", OPTIONS)
def test_an_epoch_left_early_does_not_spoil_the_next(options: str) -> None:
    loader = elastic_loader(LOADERS["shuffle"](**OPTIONS[options]))
    sampler = sampler_of(loader)
    for _ in loader:
        sampler.next_delivered()
        break
    seen: list[int] = []
    for batch in loader:
        delivered = sampler.next_delivered()
        assert (delivered.first_sample, delivered.epoch) == (len(seen), 1)
        assert len(batch) == delivered.micro_size
        seen += batch[:, 0].int().tolist()
    assert sorted(seen) == list(range(SIZE))


Run = list[tuple[Delivered, list[int]]]


def make_elastic(name: str, options: str, drop_last: bool = False) -> Any:
    loader = elastic_loader(
        LOADERS[name](drop_last=drop_last, **OPTIONS[options]), micro_batch_size=5
    )
    return loader


def decided(step: int) -> int:
    """Size that is asked for behind a step: any, but the same in each run."""
    return random.Random(step).randint(1, 12)


def run(loader: Any, steps: int) -> Iterator[tuple[Delivered, list[int]]]:
    """Consume, epoch after epoch, up to a number of steps."""
    sampler = sampler_of(loader)
    while sampler.steps < steps:
        for batch in loader:
            delivered = sampler.next_delivered()
            yield delivered, batch[:, 0].int().tolist()
            if delivered.is_last:
                sampler.set_batch_size(decided(delivered.step))
                if sampler.steps >= steps:
                    break


def check_resumed(name: str, options: str, drop_last: bool, stop: int, total: int = 24) -> None:
    torch.manual_seed(3)
    whole: Run = list(run(make_elastic(name, options, drop_last), total))
    torch.manual_seed(3)
    first = make_elastic(name, options, drop_last)
    done: Run = list(run(first, stop))
    saved = io.BytesIO()
    torch.save(sampler_of(first).state_dict(), saved)
    saved.seek(0)
    # As in another process, which has a random state of its own.
    torch.manual_seed(77)
    second = make_elastic(name, options, drop_last)
    sampler_of(second).load_state_dict(torch.load(saved, weights_only=True))
    done += run(second, total)
    assert done == whole


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("stop", range(1, 20))
def test_a_resumed_loader_yields_what_an_uninterrupted_one_does(
    name: str, drop_last: bool, stop: int
) -> None:
    check_resumed(name, "here", drop_last, stop)


@pytest.mark.parametrize("options", ["workers", "persistent"])
@pytest.mark.parametrize(
    ("name", "drop_last", "stop"),
    [("shuffle", False, 2), ("generator", True, 4), ("weighted", False, 7), ("shuffle", True, 12)],
)
def test_prefetched_steps_come_again_with_the_sizes_they_had(
    name: str, drop_last: bool, stop: int, options: str
) -> None:
    check_resumed(name, options, drop_last, stop)


@pytest.mark.parametrize("options", ["here", "workers"])
def test_a_state_names_the_step_that_a_change_reaches(options: str) -> None:
    torch.manual_seed(1)
    loader = elastic_loader(LOADERS["shuffle"](**OPTIONS[options]), batch_size=2)
    sampler = sampler_of(loader)
    for _ in loader:
        if sampler.next_delivered().step == 3:
            break
    sampler.set_batch_size(7)
    reached = sampler.next_step
    assert reached == 4 + (4 if options == "workers" else 0)
    again = elastic_loader(LOADERS["shuffle"](**OPTIONS[options]), batch_size=2)
    sampler_of(again).load_state_dict(sampler.state_dict())
    assert sampler_of(again).next_step == reached
    for _ in again:
        delivered = sampler_of(again).next_delivered()
        assert delivered.batch_size == (2 if delivered.step < reached else 7)


def test_an_explicit_batch_sampler_is_regrouped_like_a_batch_size() -> None:
    torch.manual_seed(3)
    plain = DataLoader(Noisy(), 8, shuffle=True, drop_last=True)
    expected = [batch[:, 0].tolist() for batch in plain]
    torch.manual_seed(3)
    explicit = DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(SIZE)), 8, drop_last=True)
    )
    assert [batch[:, 0].tolist() for batch in elastic_loader(explicit)] == expected


def test_a_loader_that_is_elastic_already_is_used_itself() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(SIZE)), 8)
    loader = Odd(Noisy(), batch_sampler=sampler)
    assert elastic_loader(loader, 4, micro_batch_size=3) is loader
    assert sampler.requested_batch_size == 4
    assert [len(indices) for indices in sampler][:2] == [2, 2]


def test_an_elastic_loader_has_the_ranks_that_it_is_used_on() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(SIZE)), 8, rank=1, world_size=2)
    loader = DataLoader(Noisy(), batch_sampler=sampler)
    assert batch_source(loader).batch_size == 4
    assert elastic_loader(loader, rank=1, world_size=2) is loader
    with pytest.raises(ConfigurationError, match="of rank 0 of 1, got one of rank 1 of 2"):
        elastic_loader(loader)


def test_there_is_no_length() -> None:
    with pytest.raises(TypeError, match="len"):
        len(elastic_loader(DataLoader(Noisy(), 8)))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


class Backwards(BatchSampler):
    pass


class Odd(DataLoader[Tensor]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "remedy"),
    [
        (lambda: DataLoader(Noisy(), batch_size=None), "return single samples"),
        (lambda: DataLoader(Stream(), 4), "ElasticIterable"),
        (
            lambda: DataLoader(Noisy(), batch_sampler=Backwards(SequentialSampler([1]), 1, False)),
            "Pass DataLoader",
        ),
        (lambda: Odd(Noisy(), 4), "batch_sampler=ElasticBatchSampler"),
        (lambda: DataLoader(Noisy(), 4, num_workers=1, in_order=False), "Leave in_order=True"),
    ],
)
def test_loaders_that_cannot_be_steered_are_refused(loader: Any, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        elastic_loader(loader())


def test_all_options_are_kept() -> None:
    def collate(samples: list[Tensor]) -> list[Tensor]:
        return samples

    def initialise(_: int) -> None: ...

    old = DataLoader(
        Noisy(),
        8,
        num_workers=2,
        collate_fn=collate,
        timeout=9,
        worker_init_fn=initialise,
        multiprocessing_context="spawn",
        generator=generator(),
        prefetch_factor=5,
        persistent_workers=True,
        drop_last=True,
    )
    new = elastic_loader(old, world_size=2)
    for name in (
        *("dataset", "num_workers", "pin_memory", "timeout", "worker_init_fn", "generator"),
        *("multiprocessing_context", "prefetch_factor", "persistent_workers", "collate_fn"),
    ):
        assert getattr(new, name) is getattr(old, name), name
    assert sampler_of(new).drop_last
    assert sampler_of(new).requested_batch_size == 16
