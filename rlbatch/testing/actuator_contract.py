"""What every connection of rlbatch to a training loop must keep to, as tests.

Subclass it in a test module, train the given model in your framework, and pytest runs the contract:

    class TestMyFramework(ActuatorContract):
        def train(self, job: Job) -> list[Step]:
            ...

It holds "delivered is decided": what reaches the model is what is reported, from the step that is
named, and each epoch visits each sample exactly once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

LEARNING_RATE = 0.125


class IndexedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs, targets and the index, so that who sees a batch knows what it is made of."""

    def __init__(self, size: int) -> None:
        """Draw the data of so many samples from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        self.targets = self.inputs.square().sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[index], self.targets[index], index


@dataclass(frozen=True)
class Job:
    """What `train` is to do.

    Attributes:
        dataset: To train on, shuffled, keeping the last partial batch.
        model: Model in float64; its loss is the mean squared error.
        batch_size: First batch size.
        micro_batch_size: Most samples of one forward pass.
        decide: Given the number of optimizer steps made, the batch size to ask for from then on.
        epochs: Passes over the data.
        learning_rate: For SGD without momentum.
    """

    dataset: IndexedDataset
    model: nn.Module
    batch_size: int
    micro_batch_size: int
    decide: Callable[[int], int]
    epochs: int
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class Step:
    """What `train` reports of one optimizer step.

    Attributes:
        batch_size: The batch size that was in force, as it would be logged.
        epoch: The epoch, from 0.
        micro_batches: The indices in each of its forward passes.
        parameters: Copies of the model's parameters right after the step.
    """

    batch_size: int
    epoch: int
    micro_batches: list[list[int]]
    parameters: list[Tensor] = field(repr=False)

    @property
    def indices(self) -> list[int]:
        """All indices of the step."""
        return [index for batch in self.micro_batches for index in batch]


def make_job(seed: int | None, size: int = 53, epochs: int = 3) -> Job:
    """Return a job with random batch sizes, or with the first one all along."""

    def decide(step: int) -> int:
        return 8 if seed is None else random.Random(1000 * seed + step).randint(1, 24)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Job(IndexedDataset(size), model, 8, 5, decide, epochs)


class ActuatorContract:
    """Tests of a training loop; `train` says of which."""

    lag = 0
    """Optimizer steps by which a change may come late; at most that many are under way."""

    def train(self, job: Job) -> list[Step]:
        """Train and report every optimizer step."""
        raise NotImplementedError("Override train in the subclass.")

    @pytest.mark.parametrize("seed", [None, 0, 1, 2])
    def test_each_epoch_visits_each_sample_once(self, seed: int | None) -> None:
        """No size change skips or repeats a sample."""
        job = make_job(seed)
        steps = self.train(job)
        for epoch in range(job.epochs):
            seen = [i for step in steps if step.epoch == epoch for i in step.indices]
            _require(
                sorted(seen) == list(range(len(job.dataset))),
                f"epoch {epoch} visits {len(set(seen))} of {len(job.dataset)} samples in "
                f"{len(seen)} visits",
            )
        _require({step.epoch for step in steps} == set(range(job.epochs)), "trains other epochs")

    @pytest.mark.parametrize("seed", [None, 0, 1, 2])
    def test_what_is_reported_is_what_was_decided_and_delivered(self, seed: int | None) -> None:
        """Sizes are those asked for, late by `lag` at most, and short only at an epoch's end."""
        job = make_job(seed)
        steps = self.train(job)
        asked = [job.batch_size, *(job.decide(made) for made in range(1, len(steps)))]
        for number, step in enumerate(steps):
            allowed = asked[max(0, number - self.lag) : number + 1]
            _require(
                step.batch_size in allowed,
                f"step {number} ran at {step.batch_size}; {allowed} had been asked for",
            )
            at_end = number + 1 == len(steps) or steps[number + 1].epoch != step.epoch
            got = len(step.indices)
            _require(
                got == step.batch_size or (at_end and 0 < got < step.batch_size),
                f"step {number} reports {step.batch_size} samples and got {got}",
            )

    @pytest.mark.parametrize("seed", [None, 0, 1, 2])
    def test_each_step_follows_the_mean_gradient_of_its_samples(self, seed: int | None) -> None:
        """The parameters are those of plain SGD on the whole batches."""
        job = make_job(seed)
        reference = make_job(seed).model
        for number, step in enumerate(self.train(job)):
            _plain_step(reference, job.dataset, step.indices)
            for got, expected in zip(step.parameters, reference.parameters(), strict=True):
                _require(
                    torch.allclose(got, expected, rtol=1e-9, atol=1e-11),
                    f"step {number} leaves other parameters than SGD on its {len(step.indices)} "
                    "samples: a wrong loss weight, or a gradient left over",
                )

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_no_forward_pass_exceeds_the_limit(self, seed: int | None) -> None:
        """Memory is bounded by the micro-batch, whatever the batch size."""
        job = make_job(seed)
        for number, step in enumerate(self.train(job)):
            largest = max(map(len, step.micro_batches))
            _require(
                largest <= job.micro_batch_size,
                f"step {number} runs {largest} samples at once; the limit is "
                f"{job.micro_batch_size}",
            )


def _plain_step(model: nn.Module, data: IndexedDataset, indices: list[int]) -> None:
    model.zero_grad()
    nn.functional.mse_loss(model(data.inputs[indices]), data.targets[indices]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(LEARNING_RATE * parameter.grad)


def _require(condition: bool, message: str) -> None:
    """Fail with a sentence; it works without pytest's rewriting of assert, as in other packages."""
    if not condition:
        pytest.fail(message)
