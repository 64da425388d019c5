"""Notices that a loop touched gradients while the parts of a step were still being added up."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from rlbatch.control.average_watch import AverageWatch
from rlbatch.errors import DeliveryError


class _Seen(NamedTuple):
    parameter: Any
    gradient: Tensor
    version: int


class GradientWatch:
    """Compares the gradients in front of a part's backward pass with those behind the last one.

    By identity and torch's count of in-place changes: no value is read, no device waited for.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        zeroing: str = "controller.step() zeroes the gradients behind each step",
        clipping: str = "Clip by controller.step(clip_norm=...), or where "
        "controller.batch_complete",
        averaging: str = "where controller.step() returns samples",
    ) -> None:
        """Watch the gradients of an optimizer's parameters.

        Args:
            optimizer: Whose gradients.
            zeroing: Who zeroes them, for the message.
            clipping: Where to clip them, for the message.
            averaging: Where to update averages of weights, for the message.
        """
        self._optimizer, self._zeroing, self._clipping = optimizer, zeroing, clipping
        self._averaging, self._averages = averaging, AverageWatch()
        self._seen: list[_Seen] = []

    def remember(self) -> None:
        """Note the gradients behind a part that is not the last one."""
        self._seen = [
            _Seen(parameter, parameter.grad, version_of(parameter.grad))
            for parameter in parameters_of(self._optimizer)
            if parameter.grad is not None
        ]
        self._averages.remember()

    def forget(self) -> None:
        """The step is complete, or was dropped."""
        if self._seen:
            self._seen = []
        self._averages.forget()

    def check(self, part: int, parts: int) -> None:
        """Raise DeliveryError if a gradient is another than it was, or an average of weights.

        Args:
            part: Number of the part that comes, from 0.
            parts: Of the step.
        """
        if self._averages.updated():
            raise DeliveryError(
                f"{_between(part, parts)} an AveragedModel was updated: it would count the same "
                f"weights several times. Call update_parameters once a step, {self._averaging}."
            )
        for parameter, gradient, version in self._seen:
            if parameter.grad is not gradient:
                raise DeliveryError(
                    f"{_between(part, parts)} a .grad vanished: the loop calls zero_grad(). Leave "
                    f"that call out: {self._zeroing}."
                )
            if version_of(gradient) != version:
                raise DeliveryError(
                    f"{_between(part, parts)} a .grad was changed: the loop clips, scales or "
                    f"zeroes it at every batch. {self._clipping}; and leave zero_grad() out: "
                    f"{self._zeroing}."
                )


def _between(part: int, parts: int) -> str:
    return f"This optimizer step is made of {parts} parts, and between parts {part} and {part + 1}"


@contextmanager
def no_gradient(optimizer: Optimizer) -> Generator[None]:
    """Let a backward pass add nothing, although its loss, a mean of nothing, may be no number."""
    handles = [
        parameter.register_hook(torch.zeros_like)
        for parameter in parameters_of(optimizer)
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parameters_of(optimizer: Optimizer) -> Iterable[Any]:
    """Return all parameters that an optimizer holds."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def version_of(tensor: Any) -> int:
    """Return torch's count of a tensor's in-place changes; of this rank's shard, if it is one.

    -1 where there is no count: in inference mode, and for a lazy layer's parameter, which has no
    values before the first forward pass.
    """
    if is_lazy(tensor):
        return -1
    local = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
    return -1 if local.is_inference() else local._version
