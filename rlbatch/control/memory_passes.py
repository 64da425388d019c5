"""Passes of a plain loop that may run out of memory, and steps that begin again then."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.limits import Limits
from rlbatch.control.loader import ControlledLoader
from rlbatch.control.memory import make_gauge
from rlbatch.control.memory_guard import MemoryGuard
from rlbatch.control.ranks import Ranks
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.loop_adapter import LoopAdapter


class MemoryPasses:
    """Lets a batch come again, in smaller parts, where a pass of it has run out of memory.

    Attributes:
        finds_limit: The limit of a pass is found during the run.
        averages: Gradients are averaged here, once all ranks have theirs.
        repeating: A pass has run out of memory: nothing happens before the loop's `step`.
    """

    def __init__(self, model: nn.Module, limits: Limits, base_batch_size: int, ranks: Ranks):
        """Start with the limit that the settings name.

        Args:
            model: Whose gradients the ranks average.
            limits: The settings.
            base_batch_size: The user's, which is known to fit.
            ranks: The processes that train together.
        """
        self._model, self._ranks = model, ranks
        self.finds_limit = limits.micro_batch_size == "auto"
        self.averages = self.finds_limit and ranks.world_size > 1 and not ranks.sharded
        limit = limits.micro_batch_size
        if limit == "auto":
            limit = -(-base_batch_size // ranks.world_size)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        gauge = make_gauge(device, limits.memory_limit)
        self._guard = MemoryGuard(gauge, limit, adapts=self.finds_limit, ranks=ranks)
        self.repeating = False

    def attach(
        self, adapter: LoopAdapter, accumulator: GradientAccumulator, loader: ControlledLoader
    ) -> None:
        """Take what a step that begins again concerns."""
        self._adapter, self._accumulator, self._loader = adapter, accumulator, loader

    @property
    def limit(self) -> int | None:
        """Most samples of a pass, on all ranks; None for no limit."""
        return self._guard.limit

    def require_watched(self) -> None:
        """Refuse a backward pass that nobody watches, where the limit of a pass is to be found.

        Raises:
            DeliveryError: It is one.
        """
        if not self._guard.active:
            raise DeliveryError(
                "micro_batch_size='auto' needs forward and backward pass in the block of `with "
                "controller.within_memory():`."
            )

    @contextmanager
    def watch(self) -> Generator[None]:
        """Return the block of a pass; see `BatchController.within_memory`."""
        delivered = self._accumulator.delivered
        if delivered is None:
            raise DeliveryError("within_memory() belongs to one batch of the controller's loader.")
        if self._ranks.world_size > 1 and not self.finds_limit:
            raise ConfigurationError(
                "With several ranks within_memory() needs micro_batch_size='auto', by which they "
                "know before the pass not to wait for each other in it."
            )
        with self._guard.watch(delivered.micro_size):
            yield
        if self._guard.has_failed:
            self.settle()

    def averaged(self) -> bool:
        """Let the ranks average the gradients of a complete step; False where it begins again."""
        if self._accumulator.batch_complete:
            if not self.settle():
                return False
            self._accumulator.correct()
        return True

    def settle(self) -> bool:
        """Return whether all ranks have their gradients, now averaged; or else begin again."""
        guard = self._guard
        failed = guard.settle()
        if not failed:
            guard.average_gradients(self._model)
            return True
        reason = f"out of memory with micro-batches of {failed}; going on with {guard.limit}"
        warnings.warn(f"rlbatch: {reason}", RuntimeWarning, stacklevel=4)
        self._adapter.note_memory(reason)
        self._adapter.abandon_step()
        self._accumulator.abandon()
        self._loader.repeat_step(guard.limit)
        self.repeating = True
        return False

    def end_step(self) -> None:
        """The optimizer has stepped: let coming steps have parts of what fits by now.

        Of use where the limit of a pass is found during the run.
        """
        if not self.averages:
            self._guard.settle()
        self._loader.sampler.set_micro_batch_size(self._guard.limit)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._guard.state_dict()

    def takes(self, state: Any) -> bool:
        """Whether a limit was found and is to be found: else the settings' holds."""
        unlimited = isinstance(state, Mapping) and "limit" in state and state["limit"] is None
        return self.finds_limit and state is not None and not unlimited

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue with the limit that was found."""
        if state is not None and self.takes(state):
            self._guard.load_state_dict(state)
            self._loader.sampler.set_micro_batch_size(self._guard.limit)
