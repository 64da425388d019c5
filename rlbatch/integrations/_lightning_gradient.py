"""The gradient of a Lightning run's step, put together from the passes that the Trainer makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from rlbatch.control.gradient_watch import GradientWatch, no_gradient
from rlbatch.control.loss_parts import LossParts
from rlbatch.control.part_weights import number_of
from rlbatch.control.step_watch import StepWatch
from rlbatch.data.delivery import Delivered
from rlbatch.integrations._lightning_steps import MicroBatchTracker

_TELLING = (
    "Give BatchSizeCallback(weight=...), a function of the batch, or call callback.weigh(...) in "
    "training_step,"
)
_ZEROING = "the Trainer zeroes the gradients in front of each step's first part"
_CLIPPING = "Clip by Trainer(gradient_clip_val=...), or in on_before_optimizer_step"
_AVERAGING = "in on_before_zero_grad or by the callback WeightAveraging"
_ENDS = "in on_before_optimizer_step, which comes once a step"

Weight = float | Tensor
WeightOf = Callable[[Any], Weight]


class StepGradient:
    """Weighs the losses of a step's parts and watches what else is done with their gradients.

    Attributes:
        tracker: Which part is under way.
        left_out: A part of the step had no loss, and the step is left out for it.
    """

    def __init__(
        self,
        trainer: Any,
        tracker: MicroBatchTracker,
        weight_of: WeightOf | None = None,
        changes: bool = True,
    ) -> None:
        """Watch a Trainer that has its optimizer.

        Args:
            trainer: The Trainer.
            tracker: Follows its passes.
            weight_of: From a batch to what its loss is the mean of; None: by samples, unless
                `weigh` says otherwise.
            changes: The batch size may change.
        """
        self.tracker, self.left_out, self._changes = tracker, False, changes
        self._optimizer: Any = trainer.optimizers[0]
        self._alone = trainer.world_size == 1
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._weight_of, self._weight = weight_of, None
        self._scaled: Tensor | None = None
        self._watch = GradientWatch(self._optimizer, _ZEROING, _CLIPPING, _AVERAGING)
        self._loss_parts = LossParts(_TELLING)
        self._steps = StepWatch(
            trainer.strategy.model, self._optimizer, tracker, steps="the Trainer", ends=_ENDS
        )
        self._without = ExitStack()
        # Behind the watch's own, which is one for all optimizers: the first step was the Trainer's.
        self._handle = self._optimizer.register_step_pre_hook(self._note_step)

    def active(self, active: bool) -> None:
        """Watch the steps of all optimizers, or none: an epoch begins or is over."""
        self._steps.active = active

    def close(self) -> None:
        """The fit is over."""
        self.active(False)
        self._handle.remove()

    def abandon(self) -> None:
        """Forget the step under way."""
        self._watch.forget()
        self._without.close()
        self.left_out, self._weight = False, None

    def begin(self, delivered: Delivered, batch: Any) -> None:
        """A part is about to go through `training_step`."""
        if delivered.position == 0:
            self.left_out = False
            self._watch.forget()
        self._steps.stepping = delivered.is_last
        self._weight = None
        if self._weight_of is not None:
            self._take_weight(delivered, self._weight_of(batch))

    def weigh(self, weight: Weight) -> None:
        """Take what the loss of the part under way is the mean of."""
        delivered = self.tracker.delivered
        if delivered is not None:
            self._take_weight(delivered, weight)

    def before_backward(self, loss: Tensor, divisor: int) -> None:
        """Give a part's loss its weight in the gradient.

        Args:
            loss: As Lightning has divided it by `divisor`, and scaled it.
            divisor: The `accumulate_grad_batches` of this part.
        """
        delivered, mean = self.tracker.delivered, self._mean(loss, divisor)
        if delivered is not None and delivered.position:
            self._watch.check(delivered.position, delivered.micro_batches)
        if delivered is not None and self._looks(delivered):
            self._loss_parts.look(loss, delivered, _undivided(loss, self._scaler is not None))
        factor = self.tracker.weigh(mean, self._weight) * divisor
        if factor == 0.0:  # the mean of nothing may be no number
            self._without.enter_context(no_gradient(self._optimizer))
        elif abs(factor - 1.0) > 1e-9:
            loss.register_hook(lambda gradient: gradient * factor)
        self._scaled = mean
        self._steps.begin_backward()

    def after_backward(self) -> Tensor | None:
        """Return the mean loss of the part whose pass is over; None where there was none.

        Behind a step's last part the gradient is the step's own, before anything clips it.
        """
        self._steps.end_backward()
        self._steps.check_backward()
        self._without.close()
        mean, self._scaled = self._scaled, None
        delivered = self.tracker.delivered
        if mean is None or delivered is None:
            return None
        if not delivered.is_last:
            self._watch.remember()
            return self.tracker.told(mean)
        self._watch.forget()
        self.tracker.correct()
        return self.tracker.told(mean)

    def leave_out(self) -> None:
        """Leave the step under way out: one of its parts had no loss."""
        self.left_out = True
        self._watch.forget()

    def before_step(self) -> None:
        """Let the optimizer step with nothing if the step is left out."""
        if self.left_out:
            # Not before: a GradScaler wants to have seen gradients.
            self._optimizer.zero_grad(set_to_none=True)

    def _mean(self, loss: Tensor, divisor: int) -> Tensor:
        mean = loss.detach()
        if self._scaler is not None:
            # `get_scale` would wait for the device.
            mean = mean * self._scaler.scale(torch.ones((), device=mean.device)).reciprocal()
        return mean if divisor == 1 else mean * divisor

    def _looks(self, delivered: Delivered) -> bool:
        """Whether a loss is to be looked at that came without a weight."""
        return self._weight is None and (self._changes or delivered.micro_batches > 1)

    def _take_weight(self, delivered: Delivered, weight: Weight) -> None:
        """Keep a weight that matters: of a part, or of a batch in which nothing counts."""
        number = number_of(weight)
        if delivered.micro_batches > 1 or not self._alone or number == 0.0:
            self._weight = number

    def _note_step(self, *_: Any) -> None:
        self._steps.stepping = False


def _undivided(loss: Tensor, is_scaled: bool) -> Any:
    """Return autograd's node of the loss that `training_step` returned."""
    node: Any = loss.grad_fn
    if is_scaled and node is not None:
        node = node.next_functions[0][0]
    if node is not None and "DivBackward" in node.name():
        node = node.next_functions[0][0]
    return node
