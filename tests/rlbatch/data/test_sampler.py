import copy
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rlbatch.data.delivery import Delivered
from rlbatch.data.sampler import ElasticBatchSampler, ShuffledSampler
from rlbatch.errors import ConfigurationError, DeliveryError

Issued = list[tuple[Delivered, list[int]]]
Schedule = dict[int, int]


def consume(sampler: ElasticBatchSampler, schedule: Schedule, limit: int | None = None) -> Issued:
    """Run one epoch as a loader without workers does; set sizes between steps."""
    issued: Issued = []
    sampler.set_batch_size(schedule.get(sampler.steps, sampler.requested_batch_size))
    for indices in sampler:
        delivered = sampler.next_delivered()
        issued.append((delivered, indices))
        if delivered.is_last:
            if limit is not None and sampler.steps >= limit:
                break
            sampler.set_batch_size(schedule.get(sampler.steps, sampler.requested_batch_size))
    return issued


def random_schedule(seed: int, world_size: int = 1) -> Schedule:
    draw = random.Random(seed)
    return {n: world_size * draw.randint(1, 12) for n in range(100) if draw.random() < 0.6}


@settings(max_examples=30)
@given(
    st.integers(4, 90),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 4]),
    st.none() | st.integers(1, 5),
    st.booleans(),
)
def test_each_epoch_visits_each_sample_once(
    size: int, seed: int, world_size: int, limit: int | None, drop_last: bool
) -> None:
    schedule = random_schedule(seed, world_size)
    ranks = [
        ElasticBatchSampler(
            ShuffledSampler(size, seed),
            4,
            micro_batch_size=limit,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for epoch in range(3):
        issued = [consume(rank, schedule) for rank in ranks]
        # Every rank does the same number of backward passes in each step.
        assert len({tuple((d.step, d.micro_batches) for d, _ in run) for run in issued}) == 1
        seen = Counter(index for run in issued for _, indices in run for index in indices)
        assert set(seen.values()) <= {1}
        if not drop_last:
            assert len(seen) == size
        steps = {d.step: d for run in issued for d, _ in run}
        for step, d in steps.items():
            inside = [(x, i) for run in issued for x, i in run if x.step == step]
            assert sum(len(i) for _, i in inside) == d.step_samples
            assert all(len(i) == x.micro_size for x, i in inside)
            assert d.epoch == epoch
        full = [d.step_samples == d.batch_size for d in steps.values()]
        assert all(full[:-1])
        if drop_last:
            assert all(full)


def test_the_order_is_the_sampler_s_whatever_the_sizes() -> None:
    sampler = ElasticBatchSampler(ShuffledSampler(50, 3), 7, micro_batch_size=4)
    for epoch in range(2):
        reference = ShuffledSampler(50, 3)
        reference.set_epoch(epoch)
        issued = consume(sampler, random_schedule(5))
        assert [i for _, indices in issued for i in indices] == list(reference)
        start = 0
        for delivered, indices in issued:
            assert delivered.first_sample == start
            start += len(indices)


def test_a_size_holds_from_the_next_step_on() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(20)), 4, micro_batch_size=2)
    batches = iter(sampler)
    next(batches)
    sampler.set_batch_size(6)  # inside a step: that one stays as it was planned
    assert [len(b) for b in batches] == [2, 2, 2, 2, 2, 2, 2, 2, 2]
    plans = [sampler.next_delivered() for _ in range(10)]
    assert [p.step_samples for p in plans if p.is_last] == [4, 6, 6, 4]
    assert [p.batch_size for p in plans if p.is_last] == [4, 6, 6, 6]


def test_a_weighted_sampler_gives_as_many_draws_as_it_says() -> None:
    weighted = WeightedRandomSampler([0.1] * 5 + [1.0] * 5, 33, generator=torch.Generator())
    sampler = ElasticBatchSampler(weighted, 4)
    assert sum(len(i) for _, i in consume(sampler, random_schedule(1))) == 33


def make_sampler(kind: str, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return {
        "shuffled": lambda: ShuffledSampler(41, seed),
        "sequential": lambda: SequentialSampler(range(41)),
        "generator": lambda: RandomSampler(range(41), generator=generator),
        "replacement": lambda: RandomSampler(
            range(41), replacement=True, num_samples=41, generator=generator
        ),
        "global": lambda: RandomSampler(range(41)),
        "subset": lambda: SubsetRandomSampler(range(41)),
        "weighted": lambda: WeightedRandomSampler([1.0] * 41, 41, generator=generator),
    }[kind]()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["shuffled", "sequential", "generator", "replacement", "global", "subset", "weighted"],
)
def test_a_resumed_run_continues_as_if_uninterrupted(kind: str, drop_last: bool) -> None:
    schedule = random_schedule(7)

    def make(seed: int) -> ElasticBatchSampler:
        return ElasticBatchSampler(
            make_sampler(kind, seed), 4, micro_batch_size=3, drop_last=drop_last
        )

    torch.manual_seed(1)
    whole = make(seed=11)
    uninterrupted = [item for _ in range(3) for item in consume(whole, schedule)]
    last = uninterrupted[-1][0].step
    for stop in (*range(1, last, 3), last):
        torch.manual_seed(1)
        first = make(seed=11)
        done: Issued = []
        while first.steps < stop:
            done += consume(first, schedule, limit=stop)
        state = copy.deepcopy(first.state_dict())
        torch.manual_seed(999)  # another process, whose seeds are its own
        second = make(seed=11 if kind == "shuffled" else 99)
        second.load_state_dict(state)
        assert second.steps == stop
        assert second.requested_batch_size == first.requested_batch_size
        while second.steps <= last:
            done += consume(second, schedule)
        assert done == uninterrupted, stop


def test_a_step_that_is_not_whole_is_not_consumed() -> None:
    sampler = ElasticBatchSampler(ShuffledSampler(20, 0), 8, micro_batch_size=4)
    batches = iter(sampler)
    for _ in range(3):
        next(batches)
        sampler.next_delivered()
    state = sampler.state_dict()
    assert (state["position"], state["steps"]) == (8, 1)
    resumed = ElasticBatchSampler(ShuffledSampler(20, 0), 8, micro_batch_size=4)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["position"] == 8
    order = list(ShuffledSampler(20, 0))
    assert [i for indices in resumed for i in indices] == order[8:]


def test_a_run_may_resume_on_another_number_of_ranks() -> None:
    ranks = [ElasticBatchSampler(ShuffledSampler(23, 5), 8, rank=r, world_size=2) for r in range(2)]
    seen = [i for rank in ranks for _, indices in consume(rank, {}, limit=1) for i in indices]
    alone = ElasticBatchSampler(ShuffledSampler(23, 5), 8)
    alone.load_state_dict(ranks[0].state_dict())
    seen += [i for _, indices in consume(alone, {}) for i in indices]
    assert sorted(seen) == list(range(23))


def test_an_abandoned_iterator_leaves_nothing_behind() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(20)), 8, micro_batch_size=4)
    batches = iter(sampler)
    for _ in range(3):  # issued as to prefetching workers, and only one of them consumed
        next(batches)
    sampler.next_delivered()
    issued = consume(sampler, {})
    assert [i for _, indices in issued for i in indices] == list(range(20))
    assert [d.position for d, _ in issued] == [0, 1, 0, 1, 0]
    assert {d.epoch for d, _ in issued} == {1}
    assert [d.step for d, _ in issued] == [0, 0, 1, 1, 2]


def test_two_iterators_at_once_are_refused() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(20)), 8)
    first, second = iter(sampler), iter(sampler)
    next(first)
    next(second)
    with pytest.raises(DeliveryError, match="one iterator at a time"):
        next(first)


def test_asking_for_more_than_was_issued_is_refused() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(8)), 8)
    list(sampler)
    sampler.next_delivered()
    with pytest.raises(DeliveryError, match="exactly once"):
        sampler.next_delivered()


def test_a_rest_smaller_than_the_ranks_joins_the_last_window() -> None:
    ranks = [
        ElasticBatchSampler(SequentialSampler(range(9)), 4, rank=r, world_size=4) for r in range(4)
    ]
    issued = [consume(rank, {}) for rank in ranks]
    assert [[i for _, i in run] for run in issued] == [
        [[0], [4, 5]],
        [[1], [6]],
        [[2], [7]],
        [[3], [8]],
    ]


def test_orders_that_ranks_would_not_share_are_refused() -> None:
    data = range(8)
    for sampler in (RandomSampler(data), SubsetRandomSampler(data)):
        with pytest.raises(ConfigurationError, match="ShuffledSampler"):
            ElasticBatchSampler(sampler, 4, world_size=2)
    part: Any = DistributedSampler(data, num_replicas=2, rank=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="whole epoch"):
        ElasticBatchSampler(part, 4, world_size=2)
    with pytest.raises(ConfigurationError, match="share equally"):
        ElasticBatchSampler(SequentialSampler(data), 5, world_size=2)
    with pytest.raises(ConfigurationError, match="Use fewer ranks"):
        list(ElasticBatchSampler(SequentialSampler(range(3)), 4, world_size=4))


def test_a_foreign_state_is_refused() -> None:
    sampler = ElasticBatchSampler(SequentialSampler(range(8)), 4)
    with pytest.raises(ConfigurationError, match="version"):
        sampler.load_state_dict({"version": 0})


def test_shuffled_epochs_differ_and_repeat() -> None:
    sampler = ShuffledSampler(30, 1)
    first = list(sampler)
    assert sorted(first) == list(range(30))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ShuffledSampler(30, 2)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
