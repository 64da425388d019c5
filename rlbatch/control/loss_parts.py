"""Sees, where it can be seen, that the parts of a batch do not add up to the whole batch's loss."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from rlbatch.control.loss_graph import Mean, Reading, read
from rlbatch.data.delivery import Delivered

_STEPS = 4  # divided ones that are looked at: parts of the first may be alike by chance
_SIZES = 4  # of undivided steps that are looked at
_TOLERANCE = 1e-6  # relative

_BACKWARD = "Call controller.backward(loss, weight=...)"
_REMEDY = (
    "{} with what each loss is the mean of (the tokens that count, the sum of class weights), "
    "and divide a sum by the number of samples. A loss that compares the samples of a batch "
    "cannot be divided: set divisible=False. rlbatch.testing.check_divisible(model, loss_fn, "
    "batch) tells."
)
_GROWS = (
    "the loss is a sum over samples: with the batch size its gradient grows, and with it the step "
    "that the optimizer makes. Divide it by their number, loss / len(batch), and multiply the "
    "learning rate by your batch size."
)


class LossParts:
    """Compares what the losses of a step's parts are means of, in the first divided steps.

    Autograd notes what a loss was divided by: class weights, labels that are left out, a mask's
    sum, the elements of a mean. Where that is not the same for each sample of each part, the parts'
    means are not weighted by samples. What a program computes in other ways is not seen.

    Attributes:
        sizes: Of undivided steps that were looked at; another one of these need not be shown.
    """

    def __init__(self, telling: str = _BACKWARD) -> None:
        """Look at the next divided steps.

        Args:
            telling: How a loop says what its losses are means of, for the message.
        """
        self._remedy = _REMEDY.format(telling)
        self._left = _STEPS
        self._means: list[Mean] | None = None  # of the first part that was seen
        self._part: tuple[int, list[float]] | None = None  # the one before, in the same step
        self.sizes: set[int] = set()
        self._first: tuple[int, list[float], float] | None = None  # of them, and its loss
        self._compared = 0  # parts in a row whose classes are their samples

    def look(
        self,
        loss: Tensor,
        delivered: Delivered,
        root: Any = None,
        counts: float | None = None,
    ) -> None:
        """Take a part's loss before its backward pass; warn, once, where parts do not add up.

        Args:
            loss: The mean, or what a framework has made of it.
            delivered: The part.
            root: Autograd's node of the mean, where a framework has divided it since.
            counts: What the part is weighted by; None for its samples.
        """
        divided = root is not None
        root = loss.grad_fn if root is None else root
        if delivered.micro_batches == 1:
            self._look_at_whole(loss, root, delivered.micro_size)
            return
        if not self._left or root is None:
            return
        self._left -= delivered.is_last
        reading = _read(root, delivered.micro_size, counts)
        # Where a framework has divided, its factors cannot be told from the user's.
        problem = reading.problem or (None if divided else self._times_samples(reading, delivered))
        self._compared = self._compared + 1 if reading.compares else 0
        if self._compared > 1:
            problem = "the loss compares each sample with the others of its batch"
        before, self._means = self._means, self._means or reading.means
        if problem is None and before is not None:
            problem = _difference(before, reading.means)
        if problem is not None:
            self._left = 0
            warnings.warn(
                f"rlbatch: a batch is divided, and its parts do not add up: {problem}. "
                f"{self._remedy}",
                RuntimeWarning,
                stacklevel=5,
            )

    def _times_samples(self, reading: Reading, delivered: Delivered) -> str | None:
        """Say so where a mean was multiplied by its samples, by two parts of one step."""
        before = self._part if delivered.position else None
        self._part = delivered.micro_size, reading.totals
        if before is None or before[0] == delivered.micro_size or not reading.totals:
            return None
        same = len(before[1]) == len(reading.totals)
        if same and any(map(_are_equal, before[1], reading.totals)):
            return "the loss is a mean times the number of samples"
        return None

    def _look_at_whole(self, loss: Tensor, root: Any, samples: int) -> None:
        """Warn where the gradient of an undivided batch grows with its size."""
        if samples in self.sizes or len(self.sizes) >= _SIZES or root is None:
            return
        self.sizes.add(samples)
        first, sums = self._first, _read(root, samples).sums
        if not sums:
            return
        value = abs(float(loss.detach().sum()))
        self._first = first or (samples, sums, value)
        if first is None or len(sums) != len(first[1]) or not any(map(_are_equal, sums, first[1])):
            return
        # Weights of the samples may make a mean of it: then its value does not grow.
        ratio = value / first[2] if first[2] else math.nan
        grown = max(ratio, 1e-300) if samples > first[0] else 1.0 / max(ratio, 1e-300)
        times = max(samples, first[0]) / min(samples, first[0])
        if grown > math.sqrt(times):
            self.sizes.update(range(-_SIZES, 0))  # said
            warnings.warn(f"rlbatch: {_GROWS}", RuntimeWarning, stacklevel=5)


def _read(root: Any, samples: int, counts: float | None = None) -> Reading:
    """Return what autograd tells of a loss; nothing where a graph is of a kind not met yet.

    It is read for a warning's sake alone, which must not end a training.
    """
    try:
        return read(root, samples, counts)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return Reading()


def _difference(before: list[Mean], found: list[Mean]) -> str | None:
    if [mean.operation for mean in before] != [mean.operation for mean in found]:
        return None  # the loss itself is another one
    for one, other in zip(before, found, strict=True):
        if abs(one.divisor - other.divisor) > _TOLERANCE * max(abs(one.divisor), 1e-300):
            return (
                f"the loss ({one.operation}) is no mean over samples; it was divided by "
                f"{one.divisor:.6g} for a sample of one part, by {other.divisor:.6g} in another"
            )
    return None


def _are_equal(one: float, other: float) -> bool:
    return abs(one - other) <= _TOLERANCE * abs(one)
