"""The contract is worth something only if it catches what it forbids."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from rlbatch.data import LossWeights, elastic_loader
from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.testing.actuator_contract import ActuatorContract, Job, Step


def plain_loop(job: Job, workers: int = 0, **wrong: Any) -> list[Step]:
    """Train with the package's own parts; `wrong` breaks one thing."""
    loader = elastic_loader(
        DataLoader(job.dataset, job.batch_size, shuffle=True, num_workers=workers),
        micro_batch_size=wrong.get("limit", job.micro_batch_size),
    )
    sampler = loader.batch_sampler
    assert isinstance(sampler, ElasticBatchSampler)
    sampler.drop_last = wrong.get("drop_last", False)
    optimizer = torch.optim.SGD(job.model.parameters(), lr=job.learning_rate)
    accumulator = LossWeights()
    steps: list[Step] = []
    micro_batches: list[list[int]] = []
    for _ in range(job.epochs):
        for inputs, targets, indices in loader:
            delivered = sampler.next_delivered()
            weight = accumulator.add(delivered, len(indices))
            if wrong.get("equal_weights"):
                weight = 1 / delivered.micro_batches
            (weight * nn.functional.mse_loss(job.model(inputs), targets)).backward()
            micro_batches.append(indices.tolist())
            if not delivered.is_last:
                continue
            accumulator.close()
            optimizer.step()
            optimizer.zero_grad()
            size = sampler.requested_batch_size if wrong.get("log_wish") else delivered.batch_size
            copies = [p.detach().clone() for p in job.model.parameters()]
            steps.append(Step(size, delivered.epoch, micro_batches, copies))
            micro_batches = []
            sampler.set_batch_size(job.decide(len(steps)))
    return steps


class TestThePlainLoop(ActuatorContract):
    def train(self, job: Job) -> list[Step]:
        return plain_loop(job)


class TestPrefetchingWorkers(ActuatorContract):
    lag = 4  # two workers prefetch two micro-batches each

    def train(self, job: Job) -> list[Step]:
        return plain_loop(job, workers=2)


class Broken(ActuatorContract):
    def __init__(self, **wrong: Any) -> None:
        self.wrong = wrong

    def trained(self, seed: int | None) -> list[Step]:
        return self.train(self.job(seed))  # each one breaks in its own way

    def train(self, job: Job) -> list[Step]:
        if self.wrong.get("deaf"):
            return plain_loop(replace(job, decide=lambda _: job.batch_size))
        return plain_loop(job, **self.wrong)


@pytest.mark.parametrize(
    ("wrong", "test", "message"),
    [
        ({"drop_last": True}, "test_each_epoch_visits_each_sample_once", "visits"),
        (
            {"deaf": True},
            "test_what_is_reported_is_what_was_decided_and_delivered",
            "asked for",
        ),
        (
            {"workers": 2, "log_wish": True},
            "test_what_is_reported_is_what_was_decided_and_delivered",
            "asked for|reports",
        ),
        (
            {"equal_weights": True},
            "test_each_step_follows_the_mean_gradient_of_its_samples",
            "wrong loss weight",
        ),
        ({"limit": None}, "test_no_forward_pass_exceeds_the_limit", "at once"),
    ],
)
def test_a_broken_loop_fails(wrong: dict[str, Any], test: str, message: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=message):
        getattr(Broken(**wrong), test)(0)
