"""The optimizer steps of a Lightning run: who makes them, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.ranks import Ranks
from rlbatch.controller import BatchController
from rlbatch.data.delivery import Delivered
from rlbatch.errors import DeliveryError


class LightningStepper(GradientAccumulator):
    """Follows the passes that Lightning makes; it makes none itself."""

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch; Lightning decides whether ranks synchronise in it."""
        if self.delivered is not None:
            raise DeliveryError(
                "The previous batch was not finished. Leave the Trainer's loops as they are."
            )
        self.delivered, self._backward_done = delivered, False

    @property
    def has_backward(self) -> bool:
        """Whether the micro-batch under way had its backward pass."""
        return self._backward_done

    def weight(self) -> float:
        """Return the share of the micro-batch's mean loss in the gradient, before its backward."""
        if self.delivered is None or self._backward_done:
            raise DeliveryError(
                "Expected one backward pass for each batch, got a second one. Return the sum of "
                "all losses from training_step."
            )
        self._backward_done = True
        return self._accumulator.add(self.delivered)

    def finish(self) -> Delivered:
        """Return the micro-batch that the Trainer is done with."""
        delivered = self.delivered
        if delivered is None:
            raise DeliveryError("A batch ended that the controller's loader did not hand out.")
        if not self._backward_done:
            self._accumulator.add(delivered)
        if delivered.is_last:
            self._accumulator.close()
        self.delivered, self._backward_done = None, False
        return delivered


class LightningController(BatchController):
    """A controller whose steps Lightning makes."""

    _detach: Callable[[], None] | None = None

    def _make_accumulator(self, ranks: Ranks) -> GradientAccumulator:
        return LightningStepper(self.model, self.optimizer, None, ranks.world_size)

    @property
    def accumulator(self) -> Any:
        """Knows the micro-batch under way."""
        return self._accumulator

    def start(self) -> None:
        """Couple the learning rate within each of the optimizer's steps, from now on."""
        self._detach = self._parts.rate.attach()

    def stop(self) -> None:
        """Leave the optimizer as it was and close the log."""
        self._parts.cost_tracker.pause()
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()
        self.close()

    def pause(self) -> None:
        """Stop the clock until a batch is fetched."""
        self._parts.cost_tracker.pause()

    def resume(self) -> None:
        """Let the clock run."""
        self._parts.cost_tracker.resume()

    def measure_loss(self, loss: Tensor) -> None:
        """Take a micro-batch's mean loss, behind its backward pass."""
        self._parts.after_backward(loss)

    def skip_step(self) -> None:
        """Leave the step under way out of what is measured."""
        self._parts.abandon_step()

    def end_step(self, delivered: Delivered) -> None:
        """Count an optimizer step that was made; after the last one of a chunk, decide."""
        self._end_step(delivered)

    def limit_next(self, samples: int) -> None:
        """Let the coming steps have so many samples at most: the run ends behind them."""
        sampler = self._require_loader().sampler
        world = self._parts.ranks.world_size
        samples = max(world, samples - samples % world)
        sampler.set_batch_size(min(self.batch_size, samples))

    @property
    def place(self) -> tuple[int, int]:
        """Return the epoch and the samples of it behind the last step, right after a start."""
        sampler = self._require_loader().sampler
        return sampler.epoch, sampler.position


def divisor(ready: int, delivered: Delivered, ends_epoch: bool) -> int:
    """Return the `accumulate_grad_batches` by which Lightning treats a batch as it should.

    Lightning steps behind batch number `ready` where that is a multiple of it or the epoch ends,
    and zeroes the gradients where `ready - 1` is. It divides the loss by it, which the weight of
    the micro-batch takes into account: for equal ones in phase nothing is left to correct.

    Args:
        ready: Number of the batch in its epoch, from 1.
        delivered: The micro-batch.
        ends_epoch: Whether it is the epoch's last.
    """
    count = delivered.micro_batches
    if count == 1:
        return 1
    keeps = delivered.position == 0 or (ready - 1) % count != 0
    if delivered.is_last:
        return count if keeps and (ready % count == 0 or ends_epoch) else ready
    # A power of two: dividing by it and multiplying again is exact.
    return count if keeps and ready % count != 0 else 1 << ready.bit_length()
