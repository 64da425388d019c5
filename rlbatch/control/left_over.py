"""Notices gradients that a step would begin with although none of its passes has made them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlbatch.control.gradient_watch import parameters_of, version_of
from rlbatch.signals import foreach

_LOOKS = 8  # first steps that are looked at: what leaves gradients does so in every step
_LEFT = (
    "rlbatch: an optimizer step begins with gradients that none of its passes has made: a backward "
    "pass behind the step before it (of a second model, of an evaluation) has left them, and they "
    "are added to the step's. Call optimizer.zero_grad() behind that pass."
)


class LeftOver:
    """Looks, in the first steps of a run, for gradients that were there before the step's data.

    A loop that zeroes gradients at its top drops them; one whose `zero_grad()` was left out, since
    `controller.step()` zeroes, would add them up.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Look at the gradients of an optimizer's parameters."""
        self._optimizer, self._looks = optimizer, _LOOKS
        self._held: list[tuple[Any, Tensor, int]] = []

    def arrive(self, part: int) -> None:
        """A part of a step is about to be handed out: look in front of the first, 0."""
        if part or not self._looks:
            return
        self._looks -= 1
        self._held = [
            (parameter, parameter.grad, version_of(parameter.grad))
            for parameter in parameters_of(self._optimizer)
            if parameter.grad is not None
        ]

    def check(self) -> bool:
        """Its first backward pass is about to begin: warn, once, where they are still there.

        Returns:
            Whether later steps are to be looked at too.
        """
        held, self._held = self._held, []
        for parameter, gradient, version in held:
            same = parameter.grad is gradient and version_of(gradient) == version
            if same and _any(gradient):
                self._looks = 0
                warnings.warn(_LEFT, RuntimeWarning, stacklevel=4)
                break
        return self._looks > 0


def _any(gradient: Tensor) -> bool:
    local = foreach.local(gradient)
    return bool((local.to_dense() if local.is_sparse else local).any())
