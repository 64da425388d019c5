"""What the loader of a plain loop tells, for those whom it concerns."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from rlbatch.control import checks
from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.loader import ControlledLoader
from rlbatch.control.memory_passes import MemoryPasses
from rlbatch.data.delivery import Delivered
from rlbatch.data.plain_steps import PlainSteps
from rlbatch.data.step_plan import micro_batch_totals
from rlbatch.loop_adapter import LoopAdapter


class Owner(Protocol):
    """A controller that steers a model.

    Attributes:
        ousted: Another one has begun to.
    """

    ousted: bool


class LoaderEvents:
    """Passes epochs and micro-batches on, as the `Consumer` of a controlled loader.

    Attributes:
        loader: Tells.
    """

    loader: ControlledLoader

    def __init__(
        self,
        owner: Owner,
        model: nn.Module,
        adapter: LoopAdapter,
        accumulator: GradientAccumulator,
        passes: MemoryPasses,
        plain_steps: PlainSteps,
    ) -> None:
        """Take those whom it concerns.

        Args:
            owner: The controller that steers the model during an epoch.
            model: What is trained.
            adapter: Decides.
            accumulator: Runs backward passes and steps.
            passes: May let a batch come again.
            plain_steps: Counts.
        """
        self._owner, self._model = owner, model
        self._adapter, self._accumulator = adapter, accumulator
        self._passes, self._plain_steps = passes, plain_steps
        self._begin_step = adapter.control_loop.begin_step

    def begin_epoch(self) -> None:
        """An iteration begins."""
        checks.take_over(self._model, self._owner)
        sampler = self.loader.sampler
        self._plain_steps.begin_epoch(sampler.epoch_size, continues=sampler.resumes_within_epoch)
        self._adapter.begin_epoch()
        self._accumulator.abandon()
        self._passes.repeating = False

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to the loop."""
        if self._owner.ousted:
            checks.require_owner(self._model, self._owner)
        self._accumulator.arrive(delivered)
        if delivered.position:
            return
        samples, count = delivered.step_samples, delivered.micro_batches
        sizes = (samples,)
        if count > 1:
            sizes = micro_batch_totals(samples, count, self._adapter.ranks.world_size)
        self._begin_step(delivered.batch_size, sizes)

    def end_epoch(self) -> None:
        """The iteration has nothing more."""
        self._adapter.end_epoch()
        self._plain_steps.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration, at its end or before."""
        self._accumulator.leave()
