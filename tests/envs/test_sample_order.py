"""The lean order of live runs against the sampler that real data loaders use."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.envs.sample_order import SampleOrder


class Permutations:
    """One permutation of 0..49 an epoch."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(50, generator=self.generator).tolist()


def test_it_hands_out_what_the_elastic_sampler_does() -> None:
    dice = random.Random(0)
    order = SampleOrder(50, seed=7)
    sampler = ElasticBatchSampler(Permutations(7), 8)
    for _ in range(4):
        for batch in sampler:
            assert order.take(sampler.next_delivered().batch_size) == batch
            sampler.set_batch_size(dice.randint(1, 20))


def test_a_single_sample_that_would_be_left_joins_the_batch_before() -> None:
    order, plain = SampleOrder(9, seed=3), SampleOrder(9, seed=3)

    batches = [order.take(4) for _ in range(4)]

    assert [len(batch) for batch in batches] == [4, 5, 4, 5]
    assert [*batches[0], *batches[1]] == plain.take(9)  # the same samples in the same order
    assert [len(SampleOrder(3, seed=0).take(1)) for _ in range(3)] == [1, 1, 1]
