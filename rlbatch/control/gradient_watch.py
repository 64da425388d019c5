"""Notices that a loop touched gradients while the parts of a step were still being added up."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from rlbatch.control.average_watch import AverageWatch
from rlbatch.control.hook_watch import HookWatch
from rlbatch.errors import DeliveryError
from rlbatch.signals import foreach

_LOOKS = 8  # parts in front of which sharded gradients are compared by their values


class _Seen(NamedTuple):
    parameter: Any
    gradient: Tensor
    version: int


class GradientWatch:
    """Compares the gradients in front of a part's backward pass with those behind the last one.

    By identity and torch's count of in-place changes: no value is read, no device waited for. Only
    of sharded gradients (a `DTensor`) not all changes are counted: the values of this rank's shards
    are compared, too, in front of the first few parts.
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
        self._hooks = HookWatch()
        self._seen: list[_Seen] = []
        self._norms: Tensor | None = None  # of shards, behind the latest part
        self._looks = _LOOKS

    def remember(self) -> None:
        """Note the gradients behind a part that is not the last one."""
        self._seen = [
            _Seen(parameter, parameter.grad, version_of(parameter.grad))
            for parameter in parameters_of(self._optimizer)
            if parameter.grad is not None
        ]
        self._norms = self._norms_of_shards() if self._looks else None
        self._averages.remember()
        if not self._hooks.done:
            self._hooks.look(self._optimizer)

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
                raise self._changed(part, parts)
        if self._norms is None:
            return
        self._looks -= 1
        norms, self._norms = self._norms, None
        if not torch.equal(norms, cast("Tensor", self._norms_of_shards())):
            raise self._changed(part, parts)

    def _changed(self, part: int, parts: int) -> DeliveryError:
        return DeliveryError(
            f"{_between(part, parts)} a .grad was changed: the loop clips, scales or zeroes it at "
            f"every batch. {self._clipping}; and leave zero_grad() out: {self._zeroing}."
        )

    def _norms_of_shards(self) -> Tensor | None:
        """Return the norms of this rank's shards; None if none is sharded."""
        shards = [
            foreach.local(seen.gradient)
            for seen in self._seen
            if hasattr(seen.gradient, "_local_tensor")
        ]
        return foreach.squared_norms(shards).nan_to_num() if shards else None


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
    """Return torch's count of a tensor's in-place changes.

    Of a `DTensor`, those of this rank's shard (by FSDP) and those of the whole (by a loop): torch
    counts either apart, and the functions that take many tensors at once nowhere. -1 where there is
    no count: in inference mode, and for a lazy layer's parameter, which has no values before the
    first forward pass.
    """
    if is_lazy(tensor):
        return -1
    local = getattr(tensor, "_local_tensor", None)  # of a DTensor
    if tensor.is_inference() or (local is not None and local.is_inference()):
        return -1
    return tensor._version + (0 if local is None else local._version)
