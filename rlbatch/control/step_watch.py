"""Notices optimizers that step beside the controller, at the first such step."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlbatch.control.gradient_watch import parameters_of, version_of
from rlbatch.errors import ConfigurationError, DeliveryError


class Watched(Protocol):
    """What is asked when an optimizer steps."""

    @property
    def between_parts(self) -> bool:
        """A step is under way and parts of it are still to come."""
        ...


class StepWatch:
    """Looks at each `optimizer.step()` in this process while an epoch is under way.

    Attributes:
        stepping: The step that comes is the controller's own.
        in_backward: A backward pass runs.
        is_first: No backward pass has been made and checked yet.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        watched: Watched,
        *,
        steps: str = "controller.step()",
        ends: str = "where controller.step() returns samples: if controller.step(): "
        "second.step(); second.zero_grad()",
    ) -> None:
        """Prepare to watch, while it is `active` and somebody holds it.

        Args:
            model: What is trained.
            optimizer: Its optimizer.
            watched: Knows whether a step is under way.
            steps: What steps the optimizer, for the message.
            ends: Where another optimizer may step, for the message.
        """
        self._steps, self._ends = steps, ends
        self.stepping = self.in_backward = False
        self._optimizer, self._watched = optimizer, weakref.ref(watched)
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        self._held = held | {id(parameter) for parameter in model.parameters()}
        self._strangers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.is_first = True
        self._versions: list[tuple[Any, int]] = []
        _listen()

    @property
    def active(self) -> bool:
        """Whether an epoch is under way."""
        return any(reference() is self for reference in _active)

    @active.setter
    def active(self, active: bool) -> None:
        others = [r for r in _active if r() is not None and r() is not self]
        _active[:] = [*others, weakref.ref(self)] if active else others

    def look(self, optimizer: Any) -> None:
        """Refuse a step that makes another run of this one.

        Raises:
            DeliveryError: The loop steps beside the controller, or between two parts.
            ConfigurationError: An optimizer steps within the backward pass, or a second one steps
                parameters of this run.
        """
        if self.stepping:
            return
        if self.in_backward:
            raise ConfigurationError(self._in_backward(type(optimizer).__name__))
        if optimizer is self._optimizer:
            raise DeliveryError(
                f"The loop calls optimizer.step() beside {self._steps}, which steps the "
                "optimizer itself. Leave the loop's own call out."
            )
        if optimizer not in self._strangers:
            self._require_stranger(optimizer)
            self._strangers.add(optimizer)
        watched = self._watched()
        if watched is not None and watched.between_parts:
            raise DeliveryError(
                f"A second optimizer, {type(optimizer).__name__}, steps between two parts of an "
                f"optimizer step. Step and zero it {self._ends}."
            )

    def check_backward(self) -> None:
        """Behind the first backward pass: refuse hooks that changed parameters in it."""
        if not self.is_first:
            return
        self.is_first, versions, self._versions = False, self._versions, []
        if any(version_of(parameter) != was for parameter, was in versions):
            raise ConfigurationError(self._in_backward("A hook"))

    def begin_backward(self) -> None:
        """A backward pass begins."""
        if self.is_first:
            self._versions = [(p, version_of(p)) for p in parameters_of(self._optimizer)]
        self.in_backward = True

    def end_backward(self) -> None:
        """The pass is over, or has failed."""
        self.in_backward = False

    def _in_backward(self, who: str) -> str:
        return (
            f"{who} steps within the backward pass, where the gradient of the step is not "
            f"complete. Remove the hooks that step, and let {self._steps} do it."
        )

    def _require_stranger(self, optimizer: Any) -> None:
        if any(id(parameter) in self._held for parameter in parameters_of(optimizer)):
            raise ConfigurationError(
                f"A second optimizer, {type(optimizer).__name__}, steps parameters of the "
                "controller's model. Give all of them to one optimizer, in parameter groups of "
                "their own."
            )


_active: list[weakref.ref[StepWatch]] = []  # a WeakSet takes longer to walk through than to ask
_listening: list[Any] = []  # one hook for all: it must not be removed while hooks are called


def _listen() -> None:
    if not _listening:
        _listening.append(register_optimizer_step_pre_hook(_look))


def _look(optimizer: Any, *_: Any) -> None:
    for reference in tuple(_active):
        watch = reference()
        if watch is not None:
            watch.look(optimizer)
