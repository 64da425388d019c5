"""No step, and no rank's share of one, of a single sample where the plain loop has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import rlbatch
from rlbatch.control.loader import least_rest
from rlbatch.data import ElasticBatchSampler, ShuffledSampler
from rlbatch.testing import ScriptedPolicy


class Stream(IterableDataset[Any]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Any:
        for index in range(self.samples):
            yield torch.randn(3), index


def train(samples: int, base: int, policy: Any, *, stream: bool = False, **settings: Any) -> Any:
    """Train with batch normalisation; return the controller and each epoch's steps."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=base, policy=policy, cost="samples", guard=None, **settings
    )
    data = (
        Stream(samples) if stream else TensorDataset(torch.randn(samples, 3), torch.arange(samples))
    )
    loader = controller.loader(DataLoader(data, base))
    epochs: list[list[int]] = []
    for _ in range(4):
        epochs.append([])
        seen: list[int] = []
        for x, rows in loader:
            seen += rows.tolist()
            controller.backward(model(x).square().mean())
            samples_of_step = controller.step()
            epochs[-1] += [samples_of_step] if samples_of_step else []
        assert seen == list(range(samples))
        controller.report_validation(1.0)
    return controller, epochs


@pytest.mark.parametrize("stream", [False, True])
def test_136_samples_at_45_leave_no_step_of_one(stream: bool) -> None:
    policy = ScriptedPolicy((torch.tensor(45 / 40).log2().item(),))
    controller, epochs = train(136, 40, policy, stream=stream)
    assert controller.batch_size == 45
    assert epochs[1:] == [[45, 45, 46]] * 3


@pytest.mark.parametrize("samples", [33, 64, 97, 136, 137, 145])
def test_no_script_of_sizes_leaves_a_step_of_one(samples: int) -> None:
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        script = tuple((torch.randn(12, generator=draw) * 0.7).tolist())
        _, epochs = train(
            samples, 8 if samples % 8 != 1 else 10, ScriptedPolicy(script), min_batch_size=2
        )
        assert min(min(epoch) for epoch in epochs) > 1


def test_a_rest_of_one_that_the_plain_loop_has_stays() -> None:
    sampler = ElasticBatchSampler(range(65), 64)
    sampler.least_rest = least_rest(65, 64, 1)
    assert [len(step) for step in sampler] == [64, 1]
    assert sampler.least_rest == 1
    assert least_rest(136, 40, 1) == 2


def test_at_the_users_size_steps_are_the_plain_loops() -> None:
    _, epochs = train(74, 8, "fixed")
    assert epochs == [[8] * 9 + [2]] * 4


def test_a_model_with_batch_normalisation_gets_no_size_of_one() -> None:
    controller, epochs = train(64, 16, ScriptedPolicy((-9.0,)), target_loss=1e-9)
    assert controller.batch_size == 2
    assert min(map(min, epochs)) == 2


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("samples", range(33, 75))
def test_ranks_get_no_single_sample_where_a_distributed_sampler_gives_none(
    world_size: int, samples: int
) -> None:
    own = 4
    data = TensorDataset(torch.arange(samples))
    plain = [
        len(x)
        for rank in range(world_size)
        for (x,) in DataLoader(data, own, sampler=DistributedSampler(data, world_size, rank))
    ]
    for size in (own, 2 * own, 3, 5):
        shares: list[int] = []
        seen: list[int] = []
        for rank in range(world_size):
            sampler = ElasticBatchSampler(
                ShuffledSampler(samples, 0), own * world_size, rank=rank, world_size=world_size
            )
            sampler.least_rest = least_rest(samples, own, world_size)
            sampler.set_batch_size(size * world_size)
            steps = list(sampler)
            shares += [len(step) for step in steps]
            seen += [index for step in steps for index in step]
        assert sorted(seen) == list(range(samples))
        if 1 not in plain:
            assert 1 not in shares


@pytest.mark.parametrize(("world_size", "limit"), [(1, 16), (2, 8), (2, 5), (4, 6)])
@pytest.mark.parametrize("samples", range(40, 140, 3))
def test_a_rest_makes_no_step_larger_than_what_fits(
    world_size: int, limit: int, samples: int
) -> None:
    """Of a loss that cannot be divided; nor is a rank left with one sample for it."""
    for size in (limit, limit - 1):
        steps: list[list[list[int]]] = []
        for rank in range(world_size):
            sampler = ElasticBatchSampler(
                ShuffledSampler(samples, 0), 4 * world_size, rank=rank, world_size=world_size
            )
            sampler.least_rest = 2 * world_size
            sampler.largest_step = limit * world_size
            sampler.set_batch_size(size * world_size)
            steps.append(list(sampler))
        assert sorted(i for own in steps for step in own for i in step) == list(range(samples))
        sizes = [len(step) for own in steps for step in own]
        assert max(sizes) <= limit
        assert min(sizes) > 1
        assert len({len(own) for own in steps}) == 1
        assert abs(len(steps[0]) - samples / (size * world_size)) < 1.0


def test_35_samples_on_two_ranks_at_16_leave_none_with_one() -> None:
    steps: list[list[int]] = []
    for rank in range(2):
        sampler = ElasticBatchSampler(ShuffledSampler(35, 0), 32, rank=rank, world_size=2)
        sampler.least_rest = least_rest(35, 16, 2)
        steps.append([len(step) for step in sampler])
    assert steps == [[18], [17]]
