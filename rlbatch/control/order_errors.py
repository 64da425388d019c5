"""What is said to a loop that calls the controller's methods in another order than it must."""

from __future__ import annotations

from rlbatch.errors import DeliveryError


def not_finished(*, backward_done: bool) -> DeliveryError:
    """Return the error of a batch that comes while the one before is still in the loop's hands."""
    missing = "step()" if backward_done else "backward(loss) and step()"
    return DeliveryError(
        f"The previous batch had no {missing}. Call both for every batch of the loader, or "
        "controller.skip() to leave one out. If something takes batches ahead of the loop "
        "(a prefetcher, list(loader), zip with a longer loader), leave it out: batches are "
        "made for the step that comes next. Workers may prefetch: num_workers. What only "
        "looks at data (update_bn, an evaluation) needs a DataLoader of its own."
    )


def out_of_order(call: str, *, failed: bool) -> DeliveryError:
    """Return the error of a call without the batch, or the backward pass, that it belongs to.

    Args:
        call: `backward`, `step` or `skip`.
        failed: The batch is there, and its backward pass has failed.
    """
    return DeliveryError(_FAILED if failed else _MISSING[call])


_FAILED = (
    "The backward pass of this batch has failed, and a part of its gradient may be there. Leave "
    "the batch out by controller.skip()."
)
_MISSING = {
    "backward": "backward() belongs to one batch of the controller's loader: call it once for "
    "each, with the sum of all losses.",
    "step": "step() needs a backward(loss) before it, once for each batch of the loader.",
    "skip": "skip() leaves out a batch of the controller's loader, and there is none under way. "
    "Call it in place of backward(loss) and step().",
}
