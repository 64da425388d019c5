"""The steps of a Lightning run: which micro-batch it is at, and how Lightning treats it."""

from __future__ import annotations

from rlbatch.data.delivery import Delivered
from rlbatch.data.loss_weights import LossWeights
from rlbatch.errors import DeliveryError


class MicroBatchTracker:
    """Follows the passes that Lightning makes; it makes none itself.

    Attributes:
        delivered: The micro-batch in the hands of the Trainer; None between two.
        has_backward: Whether it had its backward pass.
    """

    def __init__(self, world_size: int) -> None:
        """Start between two steps.

        Args:
            world_size: Ranks over which a `DistributedDataParallel` averages.
        """
        self._weights = LossWeights(world_size)
        self.delivered: Delivered | None = None
        self.has_backward = False

    def abandon(self) -> bool:
        """Forget what was begun; returns whether there are gradients of it."""
        begun = self._weights.is_open or self.has_backward
        self._weights.discard()
        self.delivered, self.has_backward = None, False
        return begun

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch; Lightning decides whether ranks synchronise in it."""
        if self.delivered is not None:
            raise DeliveryError(
                "The previous batch was not finished. Leave the Trainer's loops as they are."
            )
        self.delivered, self.has_backward = delivered, False

    def weight(self) -> float:
        """Return the share of the micro-batch's mean loss in the gradient, before its backward."""
        if self.delivered is None or self.has_backward:
            raise DeliveryError(
                "Expected one backward pass for each batch, got a second one. Return the sum of "
                "all losses from training_step."
            )
        self.has_backward = True
        return self._weights.add(self.delivered)

    def finish(self) -> Delivered:
        """Return the micro-batch that the Trainer is done with."""
        delivered = self.delivered
        if delivered is None:
            raise DeliveryError("A batch ended that the controller's loader did not hand out.")
        if not self.has_backward:
            self._weights.add(delivered)
        if delivered.is_last:
            self._weights.close()
        self.delivered, self.has_backward = None, False
        return delivered


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
