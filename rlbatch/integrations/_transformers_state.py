"""What a controlled `Trainer` adds to a checkpoint folder: one file for each process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlbatch.control.random_state import RandomState
from rlbatch.errors import ConfigurationError

STATE_FILE = "rlbatch.pt"


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint's state of the controller, as this process takes it.

    Attributes:
        controller: Of a `LoopAdapter`.
        loss_scaled: Whether the loss was found to be divided by `num_items_in_batch`.
        world_size: Processes that saved it.
        in_epoch: The Trainer had yet to end the epoch: to evaluate, to call `on_epoch_end`.
    """

    controller: Mapping[str, Any]
    loss_scaled: bool | None
    world_size: int
    in_epoch: bool = False

    @property
    def batch_size(self) -> int:
        """The user's, over all processes."""
        return self.controller["base_batch_size"]

    @property
    def epoch(self) -> int:
        """The epoch that the resumed run goes on in."""
        place = self.controller["loader"]
        return place["epoch"] + (place["complete"] and not self.in_epoch)

    @property
    def ends_epoch(self) -> bool:
        """Whether that epoch has no steps left."""
        return self.in_epoch and self.controller["loader"]["complete"]

    @classmethod
    def read(cls, checkpoint: str, rank: int, world_size: int) -> SavedRun:
        """Read this process's own file, or rank 0's where there were more or fewer processes.

        Raises:
            ConfigurationError: The checkpoint has none, or a damaged one.
        """
        path = os.path.join(checkpoint, STATE_FILE)
        if not os.path.isfile(path):
            raise ConfigurationError(
                f"The checkpoint {checkpoint} has no {STATE_FILE}: it was saved without a "
                "controller, or with save_only_model=True. Resume it with the plain Trainer, or "
                "load its model and start a new run."
            )
        saved = _read(path)
        own = os.path.join(checkpoint, _file_of(rank))
        if rank == 0:
            return saved
        if saved.world_size == world_size and os.path.isfile(own):
            return _read(own)
        # Random numbers of its own, as the Trainer leaves them to such a process.
        now, place = RandomState.now(), saved.controller["loader"]
        place = {**place, "rng": now.cpu, "cuda_rng": now.cuda}
        return replace(saved, controller={**saved.controller, "loader": place})

    def write(self, checkpoint: str, rank: int) -> None:
        """Write what `read` reads; the folder may not be there yet."""
        os.makedirs(checkpoint, exist_ok=True)
        state = {
            "controller": self.controller,
            "loss_scaled": self.loss_scaled,
            "world_size": self.world_size,
            "in_epoch": self.in_epoch,
        }
        torch.save(state, os.path.join(checkpoint, _file_of(rank)))


def _file_of(rank: int) -> str:
    return STATE_FILE if rank == 0 else f"rlbatch_rank{rank}.pt"


def _read(path: str) -> SavedRun:
    try:
        state = torch.load(path, weights_only=True)
        saved = SavedRun(state["controller"], state["loss_scaled"], state.get("world_size", 1))
        saved = replace(saved, in_epoch=state.get("in_epoch", False))
        _ = saved.batch_size, saved.epoch
    except Exception as error:  # of pickle, zip files and what is in them
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}). Resume from another checkpoint, or load "
            "the model of this one and start a new run."
        ) from error
    return saved
