"""The steps of a Lightning run: which micro-batch it is at, and how Lightning treats it."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from rlbatch.control.part_weights import PartWeights
from rlbatch.control.ranks import Ranks
from rlbatch.data.delivery import Delivered
from rlbatch.errors import DeliveryError


class MicroBatchTracker:
    """Follows the passes that Lightning makes; it makes none itself.

    Attributes:
        delivered: The micro-batch in the hands of the Trainer; None between two.
        has_backward: Whether it had its backward pass.
        parts: Micro-batches of the step under way that are done with.
    """

    def __init__(self, optimizer: Optimizer, ranks: Ranks) -> None:
        """Start between two steps.

        Args:
            optimizer: The Trainer's.
            ranks: Over which a `DistributedDataParallel` averages.
        """
        self._weights = PartWeights(optimizer, ranks.world_size)
        self._weights.ranks = ranks
        self.delivered: Delivered | None = None
        self.has_backward = False
        self.parts = 0

    @property
    def between_parts(self) -> bool:
        """Whether a step is under way, and not all of its parts had their backward pass."""
        delivered = self.delivered
        if delivered is None:
            return self._weights.is_open
        return delivered.micro_batches > 1 and not (self.has_backward and delivered.is_last)

    @property
    def is_weighted(self) -> bool:
        """Whether the parts of the step under way came with weights."""
        return self._weights.is_weighted

    def abandon(self) -> bool:
        """Forget what was begun; returns whether there are gradients of it."""
        begun = self._weights.is_open or self.has_backward
        self._weights.discard()
        self.delivered, self.has_backward, self.parts = None, False, 0
        return begun

    def arrive(self, delivered: Delivered) -> None:
        """Take the next micro-batch; Lightning decides whether ranks synchronise in it."""
        if self.delivered is not None:
            raise DeliveryError(
                "The previous batch was not finished. Leave the Trainer's loops as they are."
            )
        self.delivered, self.has_backward = delivered, False

    def weigh(self, loss: Tensor, weight: float | Tensor | None = None) -> float:
        """Return the factor of the micro-batch's mean loss, before its backward pass.

        Args:
            loss: Its mean loss.
            weight: Of what it is the mean, if not of the samples.
        """
        if self.delivered is None or self.has_backward:
            raise DeliveryError(
                "Expected one backward pass for each batch, got a second one. Return the sum of "
                "all losses from training_step."
            )
        self.has_backward = True
        return self._weights.add(loss, self.delivered, weight)

    def correct(self) -> None:
        """Divide the gradients of a weighted step by the sum of its weights."""
        self._weights.correct()

    def told(self, loss: Tensor) -> Tensor:
        """Return what to tell of a part's mean loss."""
        return self._weights.told(loss, self.delivered) if self.is_weighted else loss

    def finish(self) -> Delivered:
        """Return the micro-batch that the Trainer is done with."""
        delivered = self.delivered
        if delivered is None:
            raise DeliveryError("A batch ended that the controller's loader did not hand out.")
        if not self.has_backward:
            self._weights.leave_out(delivered)
        if delivered.is_last:
            self._weights.close()
        self.parts = 0 if delivered.is_last else delivered.position + 1
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
