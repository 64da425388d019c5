"""The lean order of live runs against the sampler that real data loaders use."""

from __future__ import annotations

import random

import torch
from torch.utils.data import RandomSampler

from rlbatch.actuation.sampler import ElasticBatchSampler
from rlbatch.envs.sample_order import SampleOrder


def test_it_hands_out_what_the_elastic_sampler_does() -> None:
    dice = random.Random(0)
    order = SampleOrder(50, seed=7)
    shuffled = RandomSampler(range(50), generator=torch.Generator().manual_seed(7))
    sampler = ElasticBatchSampler(shuffled, 8)
    for _ in range(4):
        for batch in sampler:
            assert order.take(sampler.next_delivered().batch_size) == batch
            sampler.set_batch_size(dice.randint(1, 20))
