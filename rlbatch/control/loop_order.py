"""What is said of a loop whose calls come in another order than its batches ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlbatch.arguments import real_number, shown
from rlbatch.errors import ConfigurationError, DeliveryError

FAILED = (
    "The backward pass of this batch has failed, and a part of its gradient may be there. Leave "
    "the batch out by controller.skip()."
)
NO_BACKWARD = "step() needs a backward(loss) before it, once for each batch of the loader."
NO_BATCH = (
    "skip() leaves out a batch of the controller's loader, and there is none under "
    "way. Call it in place of backward(loss) and step()."
)
_AHEAD = (
    " If something takes batches ahead of the loop (a prefetcher, list(loader), zip with a longer "
    "loader), leave it out: batches are made for the step that comes next. Workers may prefetch: "
    "num_workers. What only looks at data (update_bn, an evaluation) needs a DataLoader of its own."
)
_NO_STEP = (
    "The previous batch had no step(). Call it for every batch of the loader; it steps where the "
    "batch is complete. A loop that accumulates gradients over several batches makes controller "
    "and loader with the samples of them all as batch_size, and those of one as micro_batch_size."
)
_NEITHER = (
    "The previous batch had no backward(loss) and step(). Call both for every batch of the loader, "
    "or controller.skip() to leave one out."
)
_TWICE = (
    "backward() belongs to one batch of the controller's loader: call it once for each, with the "
    "sum of all losses."
)
_KEPT = (
    "backward() belongs to one batch of the controller's loader, and none is under way: this one "
    "is of another loader, or was kept from before (itertools.cycle and lists keep batches). Begin "
    "the loader anew for each epoch: while True: yield from loader."
)

# What `loss.backward` takes, and what to do instead.
_INSTEAD = {
    "create_graph": "gradients with a graph of their own cannot be weighed and measured. A penalty "
    "on gradients, by torch.autograd.grad(..., create_graph=True), is added to the loss before",
    "inputs": "a step is of all parameters that take part. Call requires_grad_(False) on the "
    "others before the forward pass",
    "gradient": "the loss is one number. Multiply by it before: "
    "controller.backward((loss * gradient).sum())",
}


def unfinished(backward_done: bool) -> DeliveryError:
    """Return the error of a batch that comes before the last one is done with."""
    return DeliveryError((_NO_STEP if backward_done else _NEITHER) + _AHEAD)


def out_of_turn(under_way: bool, failed: bool) -> DeliveryError:
    """Return the error of a backward pass that belongs to no batch, or is the second of one."""
    return DeliveryError(FAILED if failed else _TWICE if under_way else _KEPT)


def no_tensor(loss: Any) -> DeliveryError:
    """Return the error of a loss that has no gradient to give."""
    return DeliveryError(
        f"Expected the loss as a tensor, got {type(loss).__name__}. Give what loss.backward() "
        "was called on: no loss.item(), and the sum of several losses."
    )


def require_defaults(others: Mapping[str, Any]) -> None:
    """Refuse what `loss.backward` takes and a controller cannot pass on.

    Args:
        others: Arguments by name.

    Raises:
        ConfigurationError: One is not at torch's default; the message says what to do instead.
    """
    for name, value in others.items():
        if name not in _INSTEAD:
            raise ConfigurationError(
                f"backward() takes loss, weight and retain_graph, and got {name}. Leave it out."
            )
        if value is not None and value is not False:
            raise ConfigurationError(
                f"controller.backward() does not pass {name} on: {_INSTEAD[name]}."
            )


def require_norm(clip_norm: Any) -> None:
    """Refuse what no gradient could be clipped to.

    Raises:
        ConfigurationError: It is no number.
    """
    if not isinstance(clip_norm, float) and real_number(clip_norm) is None:
        raise ConfigurationError(
            f"clip_norm must be a number, to which the gradient's norm is clipped; got "
            f"{shown(clip_norm)}. The controller knows the optimizer and takes no closure."
        )
