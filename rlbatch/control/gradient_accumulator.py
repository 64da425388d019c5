"""Backward passes and optimizer steps of steps, in the order that a user's loop must keep."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.control.ranks import without_sync
from rlbatch.data.delivery import Delivered
from rlbatch.data.loss_weights import LossWeights
from rlbatch.errors import DeliveryError


class GradientAccumulator:
    """Accumulates the gradient of a step's micro-batches and steps the optimizer behind the last.

    Attributes:
        delivered: The micro-batch in the hands of the loop; None when it is done with it.
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
        self._accumulator = LossWeights(world_size)
        self._backward_done = self._unscaled = False
        self.delivered: Delivered | None = None

    @property
    def batch_complete(self) -> bool:
        """Whether the gradient of the whole step is there."""
        return self._backward_done and self.delivered is not None and self.delivered.is_last

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch.

        Raises:
            DeliveryError: The loop has not finished with the previous one.
        """
        if self.delivered is not None:
            missing = "step()" if self._backward_done else "backward(loss) and step()"
            raise DeliveryError(
                f"The previous batch had no {missing}. Call both for every batch of the loader; to "
                "leave one out, call them with a loss of 0 * loss."
            )
        self.delivered, self._backward_done = delivered, False
        # From before the forward pass: there a DistributedDataParallel decides to synchronise.
        if self._world_size > 1:
            alone = not (delivered.is_last and self._synchronises)
            self._unsynchronised.enter_context(without_sync(self._model, alone))

    def abandon(self) -> None:
        """Forget what was begun: the loop was left within a step."""
        self._unsynchronised.close()
        if self._accumulator.is_open or self._backward_done:
            self._accumulator.discard()
            self._optimizer.zero_grad()
        self.delivered, self._backward_done, self._unscaled = None, False, False

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the micro-batch's mean loss, weighted by its share.

        Raises:
            DeliveryError: There is no micro-batch to which the loss could belong.
        """
        delivered = self.delivered
        if delivered is None or self._backward_done:
            raise DeliveryError(
                "backward() belongs to one batch of the controller's loader: call it once for "
                "each, with the sum of all losses."
            )
        # Few steps are divided: the others are spared the accumulator.
        whole = delivered.micro_batches == 1 and self._world_size == 1
        weight = None if whole else self._accumulator.add(delivered)
        self._backward_done = True
        self._run_backward(loss, weight)

    def _run_backward(self, loss: Tensor, weight: float | None) -> None:
        weighted = loss if weight is None else loss * weight
        if self._scaler is not None:
            weighted = self._scaler.scale(weighted)
        cast("Any", weighted).backward()
        if self._world_size > 1:
            self._unsynchronised.close()

    def unscale_(self) -> None:
        """Divide the scaler's factor out of the gradients of a complete step, once."""
        if self._scaler is not None and self.batch_complete and not self._unscaled:
            self._scaler.unscale_(self._optimizer)
            self._unscaled = True

    def step(
        self, applied: AbstractContextManager[Any], clip_norm: float | None
    ) -> Delivered | None:
        """Finish the micro-batch, and the step if it is complete.

        Args:
            applied: In force while the optimizer steps.
            clip_norm: Clip the gradient to this norm before.

        Returns:
            The step's last micro-batch, or None when the step goes on.

        Raises:
            DeliveryError: The micro-batch had no backward pass.
        """
        delivered = self.delivered
        if delivered is None or not self._backward_done:
            raise DeliveryError(
                "step() needs a backward(loss) before it, once for each batch of the loader."
            )
        count = delivered.micro_batches
        if count > 1 and not delivered.is_last:
            self.delivered = None
            return None
        if clip_norm is not None:
            self.unscale_()
            nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        if count > 1 or self._world_size > 1:
            self._accumulator.close()
        with applied:
            if self._scaler is None:
                self._optimizer.step()
            else:
                self._scaler.step(self._optimizer)
        if self._scaler is not None:
            self._scaler.update()
        self._optimizer.zero_grad()
        self.delivered, self._backward_done, self._unscaled = None, False, False
        return delivered
