"""What is noticed while a `Trainer` runs the parts of an optimizer step."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rlbatch.control.gradient_watch import GradientWatch
from rlbatch.control.loss_graph import without_division
from rlbatch.control.loss_parts import LossParts
from rlbatch.control.rate_watch import RateWatch
from rlbatch.control.step_watch import StepWatch
from rlbatch.data.delivery import Delivered
from rlbatch.data.sample_schedule import follows_a_metric

_ZEROING = "the Trainer zeroes the gradients behind each step"
_CLIPPING = "Clip by max_grad_norm, or in a callback's on_pre_optimizer_step"
_AVERAGING = "in a callback's on_step_end"
_TELLING = "Give ControlledTrainer(weight=...), a function of the batch,"
_SCHEDULE = "Give it as optimizers=(optimizer, scheduler), which then goes by samples."


class RunWatch:
    """Refuses gradients that are touched between parts, and optimizers that step beside the run's.

    Attributes:
        between_parts: A step is under way, and not all of its parts had their backward pass.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, changes: bool = True) -> None:
        """Watch nothing before `begin`; `changes` says whether the batch size may change."""
        self.between_parts, self._changes = False, changes
        self._gradients = GradientWatch(optimizer, _ZEROING, _CLIPPING, _AVERAGING)
        self._parts = LossParts(_TELLING)
        self._steps = StepWatch(
            model,
            optimizer,
            self,
            steps="the Trainer",
            ends=_AVERAGING + ", which comes once a step",
        )
        self._rates = RateWatch(optimizer, _SCHEDULE)

    def begin(self) -> None:
        """An epoch is under way."""
        self._gradients.forget()
        self.between_parts = self._steps.stepping = False
        self._steps.active = True

    def rest(self) -> None:
        """No epoch is under way: optimizers may step as they like."""
        self._steps.active = False

    def look_at_rates(self, epoch: int, scheduler: Any) -> None:
        """A step is about to begin: warn of a learning rate that the schedule has not set.

        Args:
            epoch: The step's.
            scheduler: The Trainer's.
        """
        if self._changes and not follows_a_metric(scheduler):
            known = getattr(scheduler, "get_last_lr", None)
            self._rates.look(epoch, None if known is None else known())

    def stepping(self, steps: bool) -> None:
        """The Trainer is about to step the optimizer, or has done so."""
        self._steps.stepping = steps

    @contextmanager
    def over(
        self,
        accelerator: Any,
        part: Delivered,
        counts: float | None = None,
        divisor: float = 1.0,
    ) -> Generator[None]:
        """Watch the pass of one part.

        Args:
            accelerator: Runs its backward pass.
            part: As it was planned.
            counts: What the part's mean is weighted by, where its loss is a mean and the step has
                several parts; None: nothing is added up that could be wrong.
            divisor: By which the Trainer has divided that mean.

        Raises:
            DeliveryError: A gradient vanished or was changed since the part before.
            ConfigurationError: Something steps within the backward pass.
        """
        if part.position:
            self._gradients.check(part.position, part.micro_batches)
        self.between_parts = not part.is_last
        backward = accelerator.backward

        def watched(loss: Any, **kwargs: Any) -> None:
            if counts and part.micro_batches > 1:
                # What it was divided by has to be the same for each that counts.
                self._parts.look(loss, part, without_division(loss.grad_fn, divisor), counts)
            elif self._changes and part.micro_batches == 1:
                self._parts.look(loss, part)
            self._steps.begin_backward()
            try:
                backward(loss, **kwargs)
            finally:
                self._steps.end_backward()
            self._steps.check_backward()

        accelerator.backward = watched
        try:
            yield
        finally:
            del accelerator.backward
        if part.is_last:
            self._gradients.forget()
        else:
            self._gradients.remember()
