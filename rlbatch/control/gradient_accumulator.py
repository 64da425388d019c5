"""Backward passes and optimizer steps of steps, in the order that a user's loop must keep."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.control import loop_order
from rlbatch.control.checks import warn_of_made_up_step
from rlbatch.control.gradient_watch import GradientWatch
from rlbatch.control.left_over import LeftOver
from rlbatch.control.loss_parts import LossParts
from rlbatch.control.part_weights import PartWeights, number_of
from rlbatch.control.ranks import without_sync
from rlbatch.control.scaled_step import overflow
from rlbatch.control.schedule_watch import ScheduleWatch
from rlbatch.control.step_watch import StepWatch
from rlbatch.data.delivery import Delivered
from rlbatch.data.sample_schedule import never
from rlbatch.errors import DeliveryError


class GradientAccumulator:
    """Accumulates the gradient of a step's micro-batches and steps the optimizer behind the last.

    Attributes:
        delivered: The micro-batch in the hands of the loop; None when it is done with it.
        parts: What the parts of a step weigh.
        schedules: Notices schedules that count steps; None looks for none.
        changes: The batch size may change.
        left_out: Returns whether a scaler has left out the latest optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scaler: Any = None,
        world_size: int = 1,
        *,
        synchronises: bool = True,
    ) -> None:
        """Start between two steps.

        Args:
            model: Whose gradients are clipped.
            optimizer: Steps.
            scaler: A `torch.amp.GradScaler` in use.
            world_size: Ranks over which a `DistributedDataParallel` averages.
            synchronises: It averages in a step's last backward pass; or else somebody does it
                between that and the step.
        """
        self._world_size, self._synchronises = world_size, synchronises
        self._unsynchronised = ExitStack()
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._unwrapped: Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.parts = PartWeights(optimizer, world_size, synchronises=synchronises)
        self._watch = GradientWatch(optimizer)
        self._left_over: LeftOver | None = LeftOver(optimizer)  # in the first steps
        self._steps: StepWatch | None = None  # from the first batch on
        self._watches, self._loss_parts = False, LossParts()  # the first: during an epoch
        self._backward_done = self._unscaled = self._failed = False
        self._is_whole = False  # the step under way has one part, and nothing to be weighed
        self.schedules: ScheduleWatch | None = None
        self.changes, self.left_out = False, never
        self.delivered: Delivered | None = None

    @property
    def batch_complete(self) -> bool:
        """Whether the gradient of the whole step is there."""
        return self._backward_done and self.delivered is not None and self.delivered.is_last

    @property
    def between_parts(self) -> bool:
        """Whether a step is under way, and not all of its parts had their backward pass."""
        delivered = self.delivered
        if delivered is None:
            return self.parts.is_open
        return delivered.micro_batches > 1 and not self.batch_complete

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch.

        Raises:
            DeliveryError: The loop has not finished with the previous one.
        """
        if self.delivered is not None:
            raise loop_order.unfinished(self._backward_done)
        if not self._watches:
            self._begin_watch()
        self.delivered, self._backward_done = delivered, False
        if self._left_over is not None:
            self._left_over.arrive(delivered.position)
        # From before the forward pass: there a DistributedDataParallel decides to synchronise.
        if self._world_size > 1:
            alone = not (delivered.is_last and self._synchronises)
            self._unsynchronised.enter_context(without_sync(self._model, alone))

    def _begin_watch(self) -> None:
        if self._steps is None:
            warn_of_made_up_step(self._unwrapped)
            self._steps = StepWatch(self._model, self._unwrapped, self)
        self._steps.active = self._watches = True

    def abandon(self) -> None:
        """Forget what was begun: the loop was left within a step."""
        self.rest()
        if self.schedules is not None:
            self.schedules.begin_epoch()
        self._drop_step(began=self.parts.is_open or self._backward_done or self._failed)

    def rest(self) -> None:
        """No epoch is under way: optimizers may step as they like."""
        if self._steps is not None:
            self._steps.active = self._watches = False

    def leave(self) -> None:
        """The loop has left an epoch, at its end or before."""
        if self.schedules is not None:
            self.schedules.end_epoch()
        self.rest()

    def close(self) -> None:
        """The run is over."""
        self.rest()
        self._steps = None

    def backward(self, loss: Tensor, weight: Any = None, retain: bool | None = None) -> None:
        """Run the backward pass of the micro-batch's mean loss, weighted by its share.

        Args:
            loss: A mean.
            weight: A number, or a tensor of one: of what, if not of the samples.
            retain: The graph, as of `loss.backward`.

        Raises:
            DeliveryError: There is no micro-batch to which the loss could belong, the gradients of
                the parts before it were touched, or a loss of nothing is not finite on shards.
        """
        delivered = self.delivered
        if delivered is None or self._backward_done or self._failed:
            raise loop_order.out_of_turn(delivered is not None, self._failed)
        if not isinstance(loss, Tensor):
            raise loop_order.no_tensor(loss)
        if self._left_over is not None and not self._left_over.check():
            self._left_over = None
        weight = None if weight is None else number_of(weight)
        # Few steps are divided: the others are spared the accumulator.
        alone = delivered.micro_batches == 1 and self._world_size == 1
        whole = self._is_whole = alone and weight != 0.0
        if whole and weight is not None:
            self.parts.forget_weights()
        if whole and self.changes and delivered.micro_size not in self._loss_parts.sizes:
            self._loss_parts.look(loss, delivered)
        factor = None if whole else self._factor(loss, delivered, weight)
        watch, self._failed = self._steps, True  # until it is known that it has not
        if watch is None or watch.is_first or factor == 0.0:  # few
            self._watched_backward(watch, loss, factor, retain)
        else:
            watch.in_backward = True
            try:
                self._run_backward(loss, factor, retain)
            finally:
                watch.in_backward = False
        self._backward_done, self._failed = True, False
        if whole:
            return
        if not delivered.is_last:
            self._watch.remember()
        elif self._synchronises:
            self.correct()

    def _factor(self, loss: Tensor, delivered: Delivered, weight: float | None) -> float | None:
        if delivered.position:
            self._watch.check(delivered.position, delivered.micro_batches)
        if weight is None and (self.changes or delivered.micro_batches > 1):
            self._loss_parts.look(loss, delivered)
        return self.parts.add(loss, delivered, weight)

    def correct(self) -> None:
        """Divide the gradients by the sum of the weights of all parts, which now is known.

        `backward` does it behind the last part, unless somebody averages gradients after that.
        """
        self.parts.correct()

    def _watched_backward(
        self, watch: StepWatch | None, loss: Tensor, factor: float | None, retain: bool | None
    ) -> None:
        """Run a pass that is the first one, or that adds nothing."""
        if watch is not None:
            watch.begin_backward()
        try:
            with self.parts.counted(loss) if factor == 0.0 else nullcontext():
                self._run_backward(loss, factor, retain)
        finally:
            if watch is not None:
                watch.end_backward()
        if watch is not None:
            watch.check_backward()

    def _run_backward(self, loss: Tensor, weight: float | None, retain: bool | None) -> None:
        weighted = loss if weight is None else loss * weight
        if self._scaler is not None:
            weighted = self._scaler.scale(weighted)
        cast("Any", weighted).backward(retain_graph=retain)
        if self._world_size > 1:
            self._unsynchronised.close()

    def skip(self) -> Delivered:
        """Leave out the optimizer step that the micro-batch belongs to, and return it.

        Raises:
            DeliveryError: There is no micro-batch.
        """
        delivered = self.delivered
        if delivered is None:
            raise DeliveryError(loop_order.NO_BATCH)
        if self._unscaled:
            self._scaler.update()  # else it would refuse to unscale the next step
        self._drop_step(began=True)
        return delivered

    def _drop_step(self, *, began: bool) -> None:
        self._unsynchronised.close()
        self._watch.forget()
        if began:
            self.parts.discard()
            self._optimizer.zero_grad()
        self.delivered, self._backward_done = None, False
        self._unscaled = self._failed = False

    def unscale_(self) -> None:
        """Divide the scaler's factor out of the gradients of a complete step, once."""
        if self._scaler is not None and self.batch_complete and not self._unscaled:
            self._scaler.unscale_(self._optimizer)
            self._unscaled = True

    def step(
        self, applied: AbstractContextManager[Any] | None, clip_norm: float | None
    ) -> Delivered | None:
        """Finish the micro-batch, and the step if it is complete.

        Args:
            applied: In force while the optimizer steps; None: nothing is.
            clip_norm: Clip the gradient to this norm before.

        Returns:
            The step's last micro-batch, or None when the step goes on.

        Raises:
            DeliveryError: The micro-batch had no backward pass.
        """
        delivered = self.delivered
        if self._failed:
            raise DeliveryError(loop_order.FAILED)
        if delivered is None or not self._backward_done:
            raise DeliveryError(loop_order.NO_BACKWARD)
        if not self._is_whole and not delivered.is_last:
            self.delivered = None
            return None
        if clip_norm is not None:
            loop_order.require_norm(clip_norm)
            self.unscale_()
            nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        if not self._is_whole:
            self.parts.close()
            self._watch.forget()
        schedules = self.schedules
        if schedules is not None and schedules.waits:
            schedules.before_step(delivered)
        self._make_step(applied)
        if schedules is not None and schedules.waits:
            schedules.after_step()
        self._optimizer.zero_grad()
        self.delivered, self._backward_done, self._unscaled = None, False, False
        return delivered

    def _make_step(self, applied: AbstractContextManager[Any] | None) -> None:
        if watch := self._steps:
            watch.stepping, watch.stepped = True, False
        scaler, optimizer = self._scaler, self._optimizer
        step = optimizer.step if scaler is None else partial(scaler.step, optimizer)
        try:
            if applied is None:
                step()
            else:
                with applied:
                    step()
            if scaler is not None:
                stepped = watch is None or watch.stepped
                self.left_out = overflow(scaler, optimizer, stepped=stepped)
                scaler.update()
        finally:
            if watch:
                watch.stepping = False
