"""Backups of a controlled Keras run: weights, optimizer and controller of the same moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import keras
import torch

from rlbatch.arguments import require_path, require_switch, require_whole
from rlbatch.errors import ConfigurationError

_WEIGHTS, _STATE = "model.weights.h5", "control.pt"


class Backup(keras.callbacks.Callback):
    """Saves a run while it trains, and goes on with it when `fit` is called anew.

    As `keras.callbacks.BackupAndRestore`, whose restarted epochs would begin anew while the
    controller is within one; here an interrupted epoch goes on after its last sample. Build the
    model before `fit`, and put this after the controller in the list of callbacks.
    """

    def __init__(
        self,
        control: Any,
        folder: str | os.PathLike[str],
        save_freq: int | str = "epoch",
        delete: bool = True,
    ) -> None:
        """Prepare backups.

        Args:
            control: The run's controller.
            folder: Where the latest backup is; made if missing.
            save_freq: `epoch`, or after how many optimizer steps.
            delete: Remove it when `fit` has come to its end.

        Raises:
            ConfigurationError: The frequency is neither.
        """
        super().__init__()
        if not isinstance(save_freq, str) or save_freq != "epoch":
            wanted = "'epoch' or a number of optimizer steps"
            save_freq = require_whole("save_freq", save_freq, wanted)
        require_path("folder", folder, "the folder of the backups", optional=False)
        self._control, self._folder = control, Path(folder)
        self._every, self._delete = save_freq, require_switch("delete", delete)

    def latest(self) -> Path | None:
        """Return the folder of the latest backup, or None."""
        found = [path for path in self._folder.glob("[0-9]*") if (path / _STATE).is_file()]
        return max(found, default=None, key=lambda path: int(path.name))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Go on with the latest backup, if there is one."""
        latest = self.latest()
        model: Any = self.model
        if latest is None:
            return
        if not model.built:
            raise ConfigurationError(
                "Expected a built model to load weights into. Give it an Input, or call it on a "
                "batch before fit."
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(latest / _WEIGHTS)
        state = torch.load(latest / _STATE, weights_only=True)
        self._control.resume(state["control"], model)
        model._initial_epoch = state["epoch"]  # as Keras's own backups do

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, if it is time; after an epoch's last batch, its end is awaited."""
        if self._every == "epoch" or self._control.epoch_is_over:
            return
        if self._control.steps % int(self._every) == 0:
            self._save(self._control.fit_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save."""
        if self._control.fit_epoch != epoch + 1:
            raise ConfigurationError(
                "The backup would miss the epoch's validation loss. Put it after the controller: "
                "callbacks=[control, control.backup(folder)]."
            )
        self._save(epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remove what is of no use any more."""
        model: Any = self.model
        model._initial_epoch = None
        if self._delete:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, epoch: int) -> None:
        name = f"{self._control.steps:012d}"
        temporary, final = self._folder / f".{name}.{os.getpid()}", self._folder / name
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model: Any = self.model
        model.save_weights(temporary / _WEIGHTS)
        torch.save({"control": self._control.state_dict(), "epoch": epoch}, temporary / _STATE)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in self._folder.glob("[0-9]*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
