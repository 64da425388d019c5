"""Sees, where it can be seen, that the parts of a batch do not add up to the whole batch's loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlbatch.data.delivery import Delivered

_STEPS = 4  # divided ones that are looked at: parts of the first may be alike by chance
_NODES = 32  # of the graph, behind the loss
_TOLERANCE = 1e-6  # relative
_MEAN, _SUM = 1, 2  # reductions, as autograd notes them
# What may stand between a loss and its mean; the mean's own operation is looked for behind it.
_LINEAR = (
    *("AddBackward", "SubBackward", "RsubBackward", "MulBackward", "NegBackward"),
    *("ToCopyBackward", "Squeeze"),
)
_FEWEST = 4  # samples of a part whose labels tell something

_BACKWARD = "Call controller.backward(loss, weight=...)"
_REMEDY = (
    "{} with what each loss is the mean of (the tokens that count, the sum of class weights). "
    "A loss that compares the samples of a batch cannot be "
    "divided: set divisible=False. rlbatch.testing.check_divisible(model, loss_fn, batch) tells."
)


class _Mean(NamedTuple):
    """What a part's loss was divided by."""

    operation: str
    divisor: float  # a sample


class LossParts:
    """Compares what the losses of a step's parts are means of, in the first divided steps.

    Autograd notes what a loss was divided by: class weights, labels that are left out, a mask's
    sum, the elements of a mean. Where that is not the same for each sample of each part, the parts'
    means are not weighted by samples. What a program computes in other ways is not seen.
    """

    def __init__(self, telling: str = _BACKWARD) -> None:
        """Look at the next divided steps.

        Args:
            telling: How a loop says what its losses are means of, for the message.
        """
        self._remedy = _REMEDY.format(telling)
        self._left = _STEPS
        self._means: list[_Mean] | None = None  # of the first part that was seen
        self._compared = 0  # parts in a row whose classes are their samples

    def look(self, loss: Tensor, delivered: Delivered, root: Any = None) -> None:
        """Take a part's loss before its backward pass; warn, once, where parts do not add up.

        Args:
            loss: The mean, or what a framework has made of it.
            delivered: The part.
            root: Autograd's node of the mean, where a framework has divided it since.
        """
        root = loss.grad_fn if root is None else root
        if not self._left or delivered.micro_batches == 1:
            return
        self._left -= delivered.is_last
        found = list(_means(root, delivered.micro_size))
        problem = _summing(root)
        compares = _compares(root, delivered.micro_size)
        self._compared = self._compared + 1 if compares else 0
        if self._compared > 1:
            problem = "the loss compares each sample with the others of its batch"
        before, self._means = self._means, self._means or found
        if problem is None and before is not None:
            problem = _difference(before, found)
        if problem is not None:
            self._left = 0
            warnings.warn(
                f"rlbatch: a batch is divided, and its parts do not add up: {problem}. "
                f"{self._remedy}",
                RuntimeWarning,
                stacklevel=5,
            )


def _difference(before: list[_Mean], found: list[_Mean]) -> str | None:
    if [mean.operation for mean in before] != [mean.operation for mean in found]:
        return None  # the loss itself is another one
    for one, other in zip(before, found, strict=True):
        if abs(one.divisor - other.divisor) > _TOLERANCE * max(abs(one.divisor), 1e-300):
            return (
                f"the loss ({one.operation}) is no mean over samples; it was divided by "
                f"{one.divisor:.6g} for a sample of one part, by {other.divisor:.6g} in another"
            )
    return None


def _nodes(root: Any) -> Iterator[Any]:
    """Yield the operations next to a loss: those between it and its means, and these."""
    ahead: list[Any] = [root]
    for _ in range(_NODES):
        if not ahead:
            return
        node = ahead.pop(0)
        if node is None:
            continue
        yield node
        if any(word in node.name() for word in _LINEAR):
            ahead += [following for following, _ in node.next_functions]
        elif "DivBackward" in node.name():  # of a mean by a number
            ahead.append(node.next_functions[0][0])


def _means(root: Any, samples: int) -> Iterator[_Mean]:
    for node in _nodes(root):
        divisor = _divisor(node)
        if divisor is not None:
            yield _Mean(
                node.name().rstrip("0123456789").removesuffix("Backward"), divisor / samples
            )


def _divisor(node: Any) -> float | None:
    name = node.name()
    reduction = getattr(node, "_saved_reduction", None)
    if name.startswith("NllLoss"):
        return float(node._saved_total_weight) if reduction == _MEAN else None
    if reduction == _MEAN:
        return float(node._saved_self.numel())
    if name.startswith("MeanBackward0"):
        return float(node._saved_self_sym_numel)
    other = getattr(node, "_saved_other", None)
    if name.startswith("DivBackward") and isinstance(other, Tensor) and other.numel() == 1:
        return float(other.detach()) if _is_sum(node.next_functions[0][0]) else None
    return None


def _is_sum(node: Any) -> bool:
    """Whether a number is a sum over samples, perhaps with something added or multiplied."""
    while node is not None and any(word in node.name() for word in _LINEAR):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("SumBackward")


def _summing(root: Any) -> str | None:
    for node in _nodes(root):
        if getattr(node, "_saved_reduction", None) == _SUM:
            return "the loss is a sum over samples, and a mean is expected"
    return None


def _compares(root: Any, samples: int) -> bool:
    """Whether it is a cross entropy whose classes are the samples themselves, in their order."""
    for node in _nodes(root):
        target = getattr(node, "_saved_target", None)
        if not node.name().startswith("NllLoss") or target is None:
            continue
        classes = node._saved_self.shape[-1]
        if classes == samples >= _FEWEST and target.shape == (samples,):
            return bool((target.detach().cpu() == torch.arange(samples)).all())
    return False
