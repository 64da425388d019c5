"""Backward passes, steps and batches of a controlled loop, as Accelerate wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.loader import ControlledLoader
from rlbatch.control.loader_view import LoaderView
from rlbatch.control.scaled_step import always
from rlbatch.controller import BatchController
from rlbatch.data.delivery import Delivered
from rlbatch.data.sample_schedule import never
from rlbatch.integrations._shared import require_all_samples


class AcceleratedAccumulator(GradientAccumulator):
    """Goes through Accelerate for backward passes, clipping and the optimizer's step."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, world_size: int
    ) -> None:
        super().__init__(model, optimizer, world_size=world_size)
        self._accelerator = accelerator

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch; ranks average gradients after a step's last one."""
        super().arrive(delivered)
        # In place of a block around the pass: it would end within one of `accelerator.accumulate`.
        self._unsynchronised.close()
        self._synchronise(delivered.is_last)

    def abandon(self) -> None:
        """Forget what was begun: the loop was left within a step."""
        self._let_zero()
        super().abandon()

    def skip(self) -> Delivered:
        """Leave out the optimizer step that the micro-batch belongs to, and return it."""
        self._let_zero()
        scaler = self._accelerator.scaler
        if self._unscaled and scaler is not None:
            scaler.update()  # else it would refuse to unscale the next step
            self._unscaled = False
        return super().skip()

    def _let_zero(self) -> None:
        # Else the prepared optimizer keeps its gradients.
        self._accelerator.gradient_state._set_sync_gradients(True)
        self._synchronise(True)

    def _synchronise(self, in_next_pass: bool) -> None:
        if isinstance(self._model, nn.parallel.DistributedDataParallel):
            self._model.require_backward_grad_sync = in_next_pass

    def unscale_(self) -> None:
        """Divide the scaler's factor out of the gradients of a complete step, once."""
        if self.batch_complete and not self._unscaled and self._accelerator.scaler is not None:
            self._accelerator.unscale_gradients()
            self._unscaled = True

    def _make_step(self, applied: AbstractContextManager[Any] | None) -> None:
        super()._make_step(applied)
        self.left_out = always if self._accelerator.optimizer_step_was_skipped else never

    def _run_backward(self, loss: Tensor, weight: float | None, retain: bool | None) -> None:
        if self.parts.ranks.sharded:  # `accumulate` has told it not to, in all but the last pass
            self._model.set_requires_gradient_sync(True)  # pyright: ignore[reportCallIssue]
        if weight is not None and self.delivered is not None:
            # Accelerate divides by the number of micro-batches, which is all for equal ones.
            factor = weight * self.delivered.micro_batches
            loss = loss if abs(factor - 1.0) < 1e-9 else loss * factor
        self._accelerator.backward(loss, retain_graph=retain)


class DeviceLoader(LoaderView):
    """A controlled loader that tells the accelerator of steps, with batches on its device."""

    def __init__(
        self,
        loader: ControlledLoader,
        accelerator: Accelerator,
        controller: BatchController,
        users: Any,
    ) -> None:
        super().__init__(users)
        self.dataset, self.sampler = loader.dataset, loader.sampler
        self._loader, self._accelerator, self._controller = loader, accelerator, controller
        self._users_steps = accelerator.gradient_accumulation_steps

    def __iter__(self) -> Iterator[Any]:
        require_all_samples(self._users)
        for batch in self._loader:
            delivered = self._controller.delivered
            if delivered is not None:
                # A step is counted from its start, and its number of micro-batches changes between
                # steps alone.
                self._tell(delivered.micro_batches, delivered.position, delivered.is_last)
            yield send_to_device(batch, self._accelerator.device)
        self._tell(self._users_steps, 0, True)  # other loops find the accelerator as it was

    def _tell(self, micro_batches: int, position: int, is_last: bool) -> None:
        """Set what `accelerator.accumulate`, `backward` and the optimizer go by."""
        self._accelerator.gradient_accumulation_steps = micro_batches
        self._accelerator.step = position
        self._accelerator.gradient_state._set_sync_gradients(is_last)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it."""
        self._loader.set_epoch(epoch)
