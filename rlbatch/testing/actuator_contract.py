"""What every connection of rlbatch to a training loop must keep to, as tests.

Subclass it in a test module, train the given model in your framework, and pytest runs the contract:

    class TestMyFramework(ActuatorContract):
        def train(self, job: Job) -> list[Step]:
            ...

It holds "delivered is decided": what reaches the model is what is reported, from the step that is
named, and each epoch visits each sample exactly once. `LoopContract` asks for more, of a loop with
a controller: it counts in samples, goes on after any step as if nothing had happened, and with the
policy `fixed` it is the plain loop.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

from rlbatch.testing.training_job import LEARNING_RATE, IndexedDataset, Job, Step, make_job


class ActuatorContract:
    """Tests of a training loop; `train` says of which."""

    lag = 0
    """Optimizer steps by which a change may come late; at most that many are under way."""

    tolerance = 1e-9
    """Relative error of parameters that may come from rounding alone: of float64, unless the
    framework computes in less."""

    size, multiple = 53, 1
    """Samples of an epoch, and of what the batch sizes are multiples: of the number of ranks."""

    def train(self, job: Job) -> list[Step]:
        """Train and report every optimizer step."""
        raise NotImplementedError("Override train in the subclass.")

    def is_close(self, got: Tensor, expected: Tensor) -> bool:
        """Return whether two parameters differ by rounding alone."""
        return torch.allclose(got, expected, rtol=self.tolerance, atol=0.01 * self.tolerance)

    def job(self, seed: int | None) -> Job:
        """Return a job, with a model of its own."""
        return make_job(seed, self.size, multiple=self.multiple)

    @pytest.mark.parametrize("seed", [None, 0, 1, 2])
    def test_each_epoch_visits_each_sample_once(self, seed: int | None) -> None:
        """No size change skips or repeats a sample."""
        job = self.job(seed)
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
        job = self.job(seed)
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
            # A rest of less than two samples a rank joins the epoch's last step.
            most = step.batch_size + 2 * self.multiple - 1
            _require(
                got == step.batch_size or (at_end and 0 < got <= most),
                f"step {number} reports {step.batch_size} samples and got {got}",
            )

    @pytest.mark.parametrize("seed", [None, 0, 1, 2])
    def test_each_step_follows_the_mean_gradient_of_its_samples(self, seed: int | None) -> None:
        """The parameters are those of plain SGD on the whole batches."""
        job = self.job(seed)
        reference = self.job(seed).model
        for number, step in enumerate(self.train(job)):
            _plain_step(reference, job.dataset, step.indices)
            for got, expected in zip(step.parameters, reference.parameters(), strict=True):
                _require(
                    self.is_close(got, expected),
                    f"step {number} leaves other parameters than SGD on its {len(step.indices)} "
                    "samples: a wrong loss weight, or a gradient left over",
                )

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_no_forward_pass_exceeds_the_limit(self, seed: int | None) -> None:
        """Memory is bounded by the micro-batch, whatever the batch size."""
        job = self.job(seed)
        for number, step in enumerate(self.train(job)):
            largest = max(map(len, step.micro_batches))
            _require(
                largest <= job.micro_batch_size,
                f"step {number} runs {largest} samples at once; the limit is "
                f"{job.micro_batch_size}",
            )


class LoopContract(ActuatorContract):
    """Tests of a training loop with a controller; the three methods say of which."""

    bit_for_bit = True
    """Whether `fixed` is the plain loop in every bit; else up to rounding: ranks may share a batch
    in another way, so that sums round differently."""

    def plain(self, job: Job) -> list[list[Tensor]]:
        """Train without a controller at the job's batch size; return parameters of each step."""
        raise NotImplementedError("Override plain in the subclass.")

    def resume(self, job: Job, after: int) -> list[Step]:
        """Train so many steps and save; make everything anew, load, go on; report all steps."""
        raise NotImplementedError("Override resume in the subclass.")

    @pytest.mark.parametrize("seed", [None, 0])
    def test_progress_is_counted_in_samples(self, seed: int | None) -> None:
        """What the controller says it has seen is what reached the model."""
        steps = self.train(self.job(seed))
        expected = accumulate(len(step.indices) for step in steps)
        for number, (step, samples) in enumerate(zip(steps, expected, strict=True)):
            _require(
                step.samples_seen == samples,
                f"after step {number} the controller counts {step.samples_seen} samples, and "
                f"{samples} reached the model",
            )

    @pytest.mark.parametrize("after", [1, 6])
    def test_a_resumed_run_goes_on_alike(self, after: int) -> None:
        """Sizes, samples and parameters are those of the run that was never interrupted."""
        torch.manual_seed(7)
        whole = self.train(self.job(0))
        torch.manual_seed(7)
        parts = self.resume(self.job(0), after)
        _require(len(parts) == len(whole), f"{len(parts)} steps in place of {len(whole)}")
        for number, (step, expected) in enumerate(zip(parts, whole, strict=True)):
            for name in ("batch_size", "epoch", "micro_batches", "samples_seen"):
                got, wanted = getattr(step, name), getattr(expected, name)
                _require(got == wanted, f"step {number}: {name} is {got}, and was {wanted}")
            _require(
                all(map(torch.equal, step.parameters, expected.parameters)),
                f"step {number} leaves other parameters than in the run without interruption",
            )

    def test_fixed_is_the_plain_loop(self) -> None:
        """With the policy `fixed` a controller changes nothing."""
        job = replace(self.job(None), fixed=True, micro_batch_size=8)
        torch.manual_seed(7)
        steps = self.train(job)
        torch.manual_seed(7)
        plain = self.plain(self.job(None))
        _require(len(steps) == len(plain), f"{len(steps)} steps in place of {len(plain)}")
        same = torch.equal if self.bit_for_bit else self.is_close
        for number, (step, expected) in enumerate(zip(steps, plain, strict=True)):
            _require(
                all(map(same, step.parameters, expected)),
                f"step {number} leaves other parameters than the loop without a controller",
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
