"""The controller's state on each process, in what Accelerate saves of the main one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rlbatch.control.random_state import RandomState
from rlbatch.errors import ConfigurationError


class OwnState:
    """Writes and reads a file of each further process, whenever Accelerate saves and loads.

    Losses of the chunk under way, a shard's copy and random numbers differ between processes.
    """

    def __init__(self, accelerator: Any, state_dict: Callable[[], dict[str, Any]]) -> None:
        """Follow `save_state` and `load_state` of an accelerator.

        Args:
            accelerator: Of the loop.
            state_dict: Returns the state of this process.
        """
        self._accelerator, self._state_dict = accelerator, state_dict
        self._found: Mapping[str, Any] | None = None
        self._damaged: ConfigurationError | None = None  # told where all processes hear of it
        if accelerator.num_processes > 1:
            accelerator.register_save_state_pre_hook(self._save)
            accelerator.register_load_state_pre_hook(self._load)

    def of_this_process(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return this process's state, where that of the main one is loaded.

        Args:
            state: Of the main process, or this one's own.

        Raises:
            ConfigurationError: What was found beside it is damaged.
        """
        found, self._found = self._found, None
        damaged, self._damaged = self._damaged, None
        if damaged is not None:
            raise damaged
        if self._accelerator.is_main_process:
            return state
        if found is not None and _place_of(found) == _place_of(state):
            return found
        place = state.get("loader")
        if not isinstance(place, Mapping):
            return state
        # The random numbers of each process are saved on their own.
        now = RandomState.now()
        return {**state, "loader": {**place, "rng": now.cpu, "cuda_rng": now.cuda}}

    def _path(self, folder: str) -> str:
        return os.path.join(folder, f"rlbatch_rank{self._accelerator.process_index}.pt")

    def _save(self, models: Any, weights: Any, folder: str) -> None:
        if self._accelerator.is_main_process:
            return
        os.makedirs(folder, exist_ok=True)
        world_size = self._accelerator.num_processes
        torch.save({"state": self._state_dict(), "world_size": world_size}, self._path(folder))

    def _load(self, models: Any, folder: str) -> None:
        self._found = self._damaged = None
        path = self._path(folder)
        if self._accelerator.is_main_process or not os.path.isfile(path):
            return
        try:
            saved = torch.load(path, weights_only=True)
            if saved["world_size"] == self._accelerator.num_processes:
                self._found = saved["state"]
        except Exception as error:  # of pickle, zip files and what is in them
            self._damaged = ConfigurationError(
                f"{path} is damaged ({type(error).__name__}). Resume from another checkpoint."
            )


def _place_of(state: Mapping[str, Any]) -> Any:
    place = state.get("loader")
    if not isinstance(place, Mapping):
        return None
    return tuple(place.get(name) for name in ("epoch", "steps", "position"))
