"""The run that a `Trainer` makes without a controller: what steps and epochs are counted in."""

from __future__ import annotations

import math
from typing import Any

from rlbatch.control.loader import loader_sizes
from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._shared import SampleCount, plain_loader
from rlbatch.integrations._transformers_state import SavedRun


class PlainPlan:
    """The sizes and the length of the plain run.

    Attributes:
        rank: Of this process.
        world_size: Processes that train together.
        micro_batch_size: The user's, on one process.
        accumulation_steps: Micro-batches of one of the user's steps.
        batch_size: The user's, over all processes; a checkpoint's where that had other processes.
        loader: Of whole steps of it, on this process.
        count: Turns samples into steps of it.
        total_steps: After which the run ends; told once the Trainer knows it.
    """

    def __init__(self, trainer: Any, prepared: Any, saved: SavedRun | None) -> None:
        """Read the Trainer's arguments.

        Args:
            trainer: Whose they are.
            prepared: Its own loader.
            saved: The state to go on from; None to start anew.

        Raises:
            ConfigurationError: The loader or the checkpoint cannot be gone on from.
        """
        args = trainer.args
        self.rank, self.world_size = args.process_index, args.world_size
        self.micro_batch_size = trainer._train_batch_size
        self.accumulation_steps = args.gradient_accumulation_steps
        self.round = self.micro_batch_size * self.world_size
        self.batch_size = self._size_to_keep(saved)
        _require_size(prepared, self.micro_batch_size)
        self.loader = plain_loader(prepared, self.batch_size // self.world_size)
        _, samples = loader_sizes(self.loader)
        self.count = SampleCount(self.batch_size, samples)
        self._rounds = -(-samples // self.round)  # of an epoch
        self.total_steps = 0

    def _size_to_keep(self, saved: SavedRun | None) -> int:
        size = self.round * self.accumulation_steps
        if saved is None or saved.world_size == self.world_size:
            return size
        if saved.batch_size % self.world_size:
            raise ConfigurationError(
                f"The checkpoint's batch size {saved.batch_size} cannot be shared by "
                f"{self.world_size} processes. Resume on a number of them that divides it."
            )
        return saved.batch_size

    @property
    def keeps_size(self) -> bool:
        """Whether the batch size is a checkpoint's, and not what the arguments say."""
        return self.batch_size != self.round * self.accumulation_steps

    @property
    def accumulates(self) -> bool:
        """Whether a step has several micro-batches on each process."""
        return self.batch_size > self.round

    @property
    def samples(self) -> int:
        """Of an epoch."""
        return self.count.dataset_size

    def length(self, args: Any) -> tuple[int, int]:
        """Return the epochs and the steps of a run of this batch size, from the arguments."""
        per_epoch = self.count.steps_per_epoch
        if args.max_steps > 0:
            return -(-args.max_steps // per_epoch), args.max_steps
        return math.ceil(args.num_train_epochs), math.ceil(args.num_train_epochs * per_epoch)

    def epochs_after(self, step: Delivered) -> float:
        """Return the epochs done after an optimizer step, as the Trainer counts them."""
        if step.step_end >= self.samples:
            return step.epoch + 1.0
        return step.epoch + step.step_end / self.round / self._rounds

    def samples_left(self, epoch: int, position: int) -> int:
        """Return the samples that coming steps may have: up to the run's or the epoch's end.

        0 where nothing limits them.
        """
        if position >= self.samples:
            epoch, position = epoch + 1, 0
        return max(self.count.limit(self.total_steps, epoch, position) or 0, 0)


def _require_size(prepared: Any, batch_size: int) -> None:
    """Refuse a loader of the user's own whose batches are others than the arguments say.

    The Trainer alone would go by the loader, and plan its steps from the loader's length.
    """
    batches = getattr(prepared, "batch_sampler", None)
    batches = getattr(batches, "batch_sampler", batches)  # of Accelerate, on several ranks
    found = getattr(batches, "batch_size", None)
    if found is not None and found != batch_size:
        raise ConfigurationError(
            f"The batch size cannot be controlled: get_train_dataloader makes batches of {found}, "
            f"and the arguments say {batch_size}. Set per_device_train_batch_size to {found}."
        )
