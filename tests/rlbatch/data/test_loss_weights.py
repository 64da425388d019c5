import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlbatch.data.delivery import Delivered
from rlbatch.data.loss_weights import LossWeights
from rlbatch.data.sampler import ElasticBatchSampler, ShuffledSampler
from rlbatch.errors import ConfigurationError, DeliveryError

SIZE = 37
DATA = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = (DATA**2).sum(1, keepdim=True)


def make_model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def mean_loss(model: nn.Module, indices: list[int]) -> Tensor:
    return nn.functional.mse_loss(model(DATA[indices]), TARGETS[indices])


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.none() | st.integers(1, 5))
def test_the_gradient_is_that_of_the_whole_window(
    seed: int, world_size: int, limit: int | None
) -> None:
    draw = random.Random(seed)
    samplers = [
        ElasticBatchSampler(
            ShuffledSampler(SIZE, seed), 4, micro_batch_size=limit, rank=r, world_size=world_size
        )
        for r in range(world_size)
    ]
    accumulators = [LossWeights(world_size) for _ in samplers]
    order = list(ShuffledSampler(SIZE, seed))
    model, reference = make_model(), make_model()
    iterators = [iter(sampler) for sampler in samplers]
    start = 0
    while start < SIZE:
        size = world_size * draw.randint(1, 6)
        model.zero_grad()
        samples = 0
        for sampler, batches, accumulator in zip(samplers, iterators, accumulators, strict=True):
            sampler.set_batch_size(size)
            while True:
                indices = next(batches)
                delivered = sampler.next_delivered()
                weight = accumulator.add(delivered, len(indices))
                # The ranks' gradients are averaged, as DistributedDataParallel does.
                (weight / world_size * mean_loss(model, indices)).backward()
                samples += len(indices)
                if delivered.is_last:
                    accumulator.close()
                    break
        reference.zero_grad()
        mean_loss(reference, order[start : start + samples]).backward()
        torch.testing.assert_close(gradient(model), gradient(reference), rtol=1e-10, atol=1e-12)
        start += samples


def plan(step: int, position: int, micro_batches: int = 2) -> Delivered:
    return Delivered(
        step=step,
        batch_size=8,
        position=position,
        micro_batches=micro_batches,
        micro_size=4,
        step_samples=8,
        epoch=0,
        step_start=8 * step,
        first_sample=8 * step + 4 * position,
    )


def test_a_step_is_open_until_it_is_closed() -> None:
    accumulator = LossWeights()
    assert not accumulator.is_open
    assert accumulator.add(plan(0, 0)) == 0.5
    assert accumulator.is_open
    accumulator.add(plan(0, 1))
    accumulator.close()
    assert not accumulator.is_open
    assert LossWeights(4).loss_weight(plan(0, 0)) == 2.0


def test_misuse_is_refused_with_a_remedy() -> None:
    accumulator = LossWeights()
    with pytest.raises(DeliveryError, match="none"):
        accumulator.close()
    with pytest.raises(DeliveryError, match="first micro-batch of step 3"):
        accumulator.add(plan(3, 1))
    with pytest.raises(DeliveryError, match="of 4 samples, got 5"):
        accumulator.add(plan(0, 0), samples=5)
    accumulator.add(plan(0, 0))
    with pytest.raises(DeliveryError, match="1 of 2"):
        accumulator.close()
    with pytest.raises(DeliveryError, match="Call close"):  # the step before was left open
        accumulator.add(plan(1, 0))
    with pytest.raises(DeliveryError, match="Call close"):  # the same one twice
        accumulator.add(plan(0, 0))
    accumulator.discard()
    assert accumulator.add(plan(1, 0)) == 0.5
    with pytest.raises(ConfigurationError, match="world_size"):
        LossWeights(0)
