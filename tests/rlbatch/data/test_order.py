"""Orders of any sampler are repeated in a resumed run, or the resume is refused."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler, RandomSampler, Sampler, SubsetRandomSampler

from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.errors import ConfigurationError

SIZE = 37


class Custom(Sampler[Any]):
    """Yields what a function draws for each epoch."""

    def __init__(self, draw: Callable[[Any], Any], **attributes: Any) -> None:
        self.draw = draw
        self.epoch: int | None = None
        vars(self).update(attributes)

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[Any]:
        yield from self.draw(self)


def permuted(generator: Any) -> list[int]:
    return [int(i) for i in generator.permutation(SIZE)]


def shuffled(generator: Any) -> list[int]:
    order = list(range(SIZE))
    generator.shuffle(order)
    return order


def lazily(generator: np.random.Generator) -> Iterator[int]:
    """Draw each sample only when it is asked for."""
    for _ in range(SIZE):
        yield int(generator.integers(SIZE))


def by_epoch(sampler: Custom) -> list[int]:
    return permuted(np.random.default_rng([5, sampler.epoch or 0]))


REPEATED: dict[str, Callable[[], Any]] = {
    "NumPy's global state": lambda: Custom(lambda s: permuted(np.random)),
    "Python's global state": lambda: Custom(lambda s: shuffled(random)),
    "torch's global state": lambda: Custom(lambda s: torch.randperm(SIZE).tolist()),
    "all three": lambda: Custom(
        lambda s: [
            (permuted(np.random)[i] + random.randrange(SIZE) + int(torch.randint(SIZE, ()))) % SIZE
            for i in range(SIZE)
        ]
    ),
    "a NumPy generator": lambda: Custom(lambda s: permuted(s.rng), rng=np.random.default_rng()),
    "a Philox": lambda: Custom(
        lambda s: permuted(s.rng), rng=np.random.Generator(np.random.Philox())
    ),
    "an old NumPy generator": lambda: Custom(
        lambda s: permuted(s.rng), rng=np.random.RandomState(random.randrange(99))
    ),
    "a Random": lambda: Custom(lambda s: shuffled(s.rng), rng=random.Random()),
    "a lazy one": lambda: Custom(lambda s: lazily(s.rng), rng=np.random.default_rng()),
    "a sampler within": lambda: Custom(
        lambda s: list(s.inner),
        inner=Custom(lambda s: permuted(s.rng), rng=np.random.default_rng()),
    ),
    "torch's within": lambda: Custom(lambda s: list(s.inner), inner=RandomSampler(range(SIZE))),
    "pairs": lambda: Custom(lambda s: [(i, i % 2) for i in shuffled(random)]),
    "a list": lambda: list(range(SIZE, 0, -1)),
}


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def consume(sampler: ElasticBatchSampler) -> Iterator[Any]:
    """Consume epoch after epoch."""
    while True:
        for indices in sampler:
            yield sampler.next_delivered(), indices


def restored(state: dict[str, Any]) -> dict[str, Any]:
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    return torch.load(saved, weights_only=True)


@pytest.mark.parametrize("stop", [1, 4, 5, 7])  # an epoch has five steps
@pytest.mark.parametrize("name", REPEATED)
def test_a_user_s_sampler_continues_as_if_uninterrupted(name: str, stop: int) -> None:
    seed(1)
    sampler = ElasticBatchSampler(REPEATED[name](), 8)
    uninterrupted = consume(sampler)
    for _ in range(stop):
        next(uninterrupted)
    state = restored(sampler.state_dict())
    expected = list(islice(uninterrupted, 15 - stop))
    seed(2)
    again = ElasticBatchSampler(REPEATED[name](), 8)
    again.load_state_dict(state)
    assert list(islice(consume(again), 15 - stop)) == expected


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_distributed_sampler_works_for_a_whole_epoch_and_is_refused_for_a_part(
    replicas: int,
) -> None:
    part: Any = DistributedSampler(range(SIZE), replicas, rank=0, seed=4)  # pyright: ignore
    if replicas > 1:
        with pytest.raises(ConfigurationError, match="Pass ShuffledSampler"):
            ElasticBatchSampler(part, 8)
        return
    part.set_epoch(3)
    order = list(part)
    sampler = ElasticBatchSampler(part, 8)
    done = [indices for _, indices in islice(consume(sampler), 2)]
    again = ElasticBatchSampler(
        DistributedSampler(range(SIZE), 1, rank=0, seed=4),  # pyright: ignore
        8,
    )
    again.load_state_dict(restored(sampler.state_dict()))
    done += list(again)
    assert [index for indices in done for index in indices] == order


def test_an_order_that_follows_set_epoch_is_taken_up_in_its_epoch() -> None:
    follows = Custom(by_epoch)
    sampler = ElasticBatchSampler(follows, 8)
    follows.epoch = 6
    done = [indices for _, indices in islice(consume(sampler), 3)]
    other = Custom(by_epoch)
    other.set_epoch = lambda epoch: vars(other).update(epoch=epoch)  # type: ignore[attr-defined]
    again = ElasticBatchSampler(other, 8)
    again.load_state_dict(restored(sampler.state_dict()))
    assert [*done, *again] == list(ElasticBatchSampler(follows, 8))


HIDDEN = np.random.default_rng()  # where nobody can find it

REFUSED: dict[str, Callable[[], Any]] = {
    "hidden": lambda: Custom(lambda s: permuted(HIDDEN)),
    "unseeded": lambda: Custom(lambda s: permuted(np.random.default_rng())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_order_that_does_not_repeat_is_refused(name: str) -> None:
    sampler = ElasticBatchSampler(REFUSED[name](), 8)
    list(islice(consume(sampler), 2))
    again = ElasticBatchSampler(REFUSED[name](), 8)
    again.load_state_dict(sampler.state_dict())
    with pytest.raises(ConfigurationError, match=r"repeat the order.*hold its torch.Generator"):
        next(iter(again))


def test_other_data_or_another_sampler_is_refused() -> None:
    sampler = ElasticBatchSampler(SubsetRandomSampler(range(SIZE)), 8)
    list(islice(consume(sampler), 2))
    larger = ElasticBatchSampler(SubsetRandomSampler(range(SIZE + 1)), 8)
    larger.load_state_dict(sampler.state_dict())
    with pytest.raises(ConfigurationError, match="of 37 samples an epoch, got one of 38"):
        next(iter(larger))
    other = ElasticBatchSampler(list(range(SIZE)), 8)
    other.load_state_dict(sampler.state_dict())
    with pytest.raises(ConfigurationError, match="repeat the order"):
        next(iter(other))


def test_global_states_go_on_where_they_were() -> None:
    seed(1)
    sampler = ElasticBatchSampler(REPEATED["all three"](), 8)
    list(islice(consume(sampler), 2))
    _ = random.random(), np.random.random(), torch.rand(())  # what the training draws
    state = sampler.state_dict()
    expected = random.random(), np.random.random(), float(torch.rand(()))
    seed(2)
    again = ElasticBatchSampler(REPEATED["all three"](), 8)
    again.load_state_dict(state)
    next(iter(again))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected
