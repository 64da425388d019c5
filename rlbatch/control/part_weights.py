"""What the parts of an optimizer step weigh in its gradient, and the step's own loss."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rlbatch.control.gradient_watch import no_gradient, parameters_of
from rlbatch.control.ranks import Ranks
from rlbatch.data.delivery import Delivered
from rlbatch.data.loss_weights import LossWeights
from rlbatch.data.step_plan import micro_batch_totals
from rlbatch.errors import DeliveryError
from rlbatch.signals import foreach


class PartWeights:
    """Weighs the parts of a step by samples, or by what the loop says that their losses average.

    With weights w and gradients g of the parts of all ranks, the step's gradient is
    sum(w g) / sum(w): `add` before each backward pass, `correct` behind the last one.

    Attributes:
        ranks: The processes that train together, where weights are given.
    """

    def __init__(
        self, optimizer: Optimizer, world_size: int = 1, *, synchronises: bool = True
    ) -> None:
        """Start between two steps.

        Args:
            optimizer: Whose gradients are corrected.
            world_size: Ranks whose gradients are averaged.
            synchronises: They are averaged in a step's last backward pass.
        """
        self._optimizer, self._world_size = optimizer, world_size
        self._synchronises = synchronises
        self._weights = LossWeights(world_size)
        self._unit_known = False
        self._told: tuple[Tensor, float] | None = None  # sums of weighted losses, and of weights
        self._total: float | None = None  # weights of a step's parts on all ranks, once known
        self._latest: Tensor | None = None  # that was told of a step's loss
        self.ranks = Ranks()

    @property
    def is_open(self) -> bool:
        """Whether a step has been begun and not yet closed."""
        return self._weights.is_open

    @property
    def is_weighted(self) -> bool:
        """Whether the parts of the step under way came with weights."""
        return self._told is not None

    def add(
        self, loss: Tensor, delivered: Delivered, weight: float | Tensor | None = None
    ) -> float:
        """Take a part into the step, and return the factor of its loss.

        Args:
            loss: Its mean loss.
            delivered: The part.
            weight: Of what the loss is the mean, if not of the samples.

        Raises:
            DeliveryError: The part is not the next one, or came with a weight and others did not.
        """
        self._told = self._told if delivered.position else None
        self._total = None
        if weight is None:
            return self._weights.add(delivered)
        number = _number(weight)
        total, before = self._told or (torch.zeros_like(loss.detach()), 0.0)
        # The mean of nothing may be no number.
        self._told = total + loss.detach() * number if number else total, before + number
        if not self._unit_known and (number > 0.0 or self._world_size > 1):
            self._choose_unit(number / delivered.micro_size)
        return self._weights.add(delivered, weight=number)

    def counted(self, loss: Tensor) -> AbstractContextManager[None]:
        """Return the block of a backward pass that adds nothing: that of a part whose weight is 0.

        Args:
            loss: Its mean loss.

        Raises:
            DeliveryError: It is not finite, and ranks have shards.
        """
        if not self.ranks.sharded:
            return no_gradient(getattr(self._optimizer, "optimizer", self._optimizer))
        if not bool(loss.detach().isfinite().all()):
            raise DeliveryError(
                "A part whose weight is 0 has a loss that is not finite, and with fully_shard its "
                "gradient would reach all ranks. Give such a part a loss of 0 that depends on the "
                "model: output.sum() * 0.0."
            )
        return nullcontext()

    def leave_out(self, delivered: Delivered) -> None:
        """Take a part into the step that has no loss."""
        self._told = self._told if delivered.position else None
        self._weights.leave_out(delivered)

    def forget_weights(self) -> None:
        """The step under way has a single part, whose weight does not matter."""
        self._told = None

    def told(self, loss: Tensor, delivered: Delivered | None) -> Tensor:
        """Return what to tell of a weighted part's loss, for a mean over samples of the parts.

        What the loss of the whole step is shows behind the last one: nothing before. Where nothing
        in it counts, it is as high as the one before, for which nobody is blamed.
        """
        if delivered is None or self._told is None or not delivered.is_last:
            return torch.zeros_like(loss.detach())
        total, weight = self._told
        if self._total is not None:  # of all ranks, over which what is told is averaged
            weight = self._total / self._world_size
        elif delivered.micro_batches == 1 and weight > 0.0:
            return loss
        if weight <= 0.0:
            return total if self._latest is None else self._latest
        count, world_size = delivered.micro_batches, self._world_size
        share = micro_batch_totals(delivered.step_samples, count, world_size)[-1]
        self._latest = total * (delivered.step_samples / share / weight)
        return self._latest

    def correct(self) -> None:
        """Divide the gradients by the sum of the weights of all parts, which now is known."""
        total = self._weights.total
        if total is None:
            return
        if self._world_size > 1:
            total = float(self.ranks.mean(np.array([total]))[0]) * self._world_size
        self._total = total
        factor = self._weights.correction(total)
        optimizer: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        grads = [foreach.local(p.grad) for p in parameters_of(optimizer) if p.grad is not None]
        if factor != 1.0:
            with torch.no_grad():
                foreach.scale_(grads, factor)

    def close(self) -> None:
        """End the step, right before the optimizer's."""
        self._weights.close()

    def discard(self) -> None:
        """Forget an unfinished step; the caller zeroes the gradients."""
        self._weights.discard()

    def _choose_unit(self, weight: float) -> None:
        """Let a typical sample weigh about 1: the gradients' range is that of other runs."""
        power = round(math.log2(weight)) if 0.0 < weight < math.inf else 0
        if self._world_size > 1:  # the same on all, which may not wait for each other in a pass
            (power,) = self.ranks.largest(power) if self._synchronises else (0,)
        self._weights.unit, self._unit_known = 2.0**power, True


def weighs_nothing(weight: float | Tensor | None) -> bool:
    """Return whether a part's loss is a mean of nothing; a tensor on a device is waited for."""
    return weight is not None and _number(weight) == 0.0


def _number(weight: float | Tensor) -> float:
    try:
        return float(weight)
    except (TypeError, ValueError, RuntimeError):
        raise DeliveryError(
            f"Expected one number as the weight of a part, got {type(weight).__name__}. Give what "
            "its loss is the mean of: the number of tokens, or the sum of class weights."
        ) from None
