"""Gives up on a task whose target no run reaches, before that has taken hours."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from rlbatch.agents.evaluate.curve_store import read_lines
from rlbatch.agents.evaluate.fixed_curves import WITHOUT_SCHEDULE
from rlbatch.errors import ConfigurationError

_UNSEEN = 3.0  # times the patience, while no run has ended: it may be the machine that is slow


class TargetWatch:
    """Looks at the fixed runs of tasks while they are made."""

    def __init__(self, curves: Mapping[str, Path], patience: float) -> None:
        """Begin to wait.

        Args:
            curves: The file of each task's curves.
            patience: Seconds in which a run of each task is to reach its target.
        """
        self._waiting, self._patience = dict(curves), patience
        self._begun = time.monotonic()

    def ended(self, task: str) -> None:
        """Wait for a task no longer: its fixed runs are made."""
        self._waiting.pop(task, None)

    def look(self) -> None:
        """Give up where nothing was reached in time.

        Raises:
            ConfigurationError: It was not.
        """
        spent = time.monotonic() - self._begun
        if spent < self._patience:
            return
        for task, path in list(self._waiting.items()):
            lowest, seen = lowest_loss(path)
            if lowest is None:
                self.ended(task)
            if lowest is None or (lowest == math.inf and spent < _UNSEEN * self._patience):
                continue
            raise ConfigurationError(
                f"Task {task!r}: after {spent / 60:.0f} min no fixed batch size has "
                f"brought the validation loss to the target.{seen} Choose a target that a good run"
                " reaches, or give more --minutes to a task whose runs take long."
            )


def lowest_loss(path: Path) -> tuple[float | None, str]:
    """Return the lowest loss of a task's runs so far, and in words what came of them.

    None, and no words, if one has arrived.

    Args:
        path: The file of its curves.
    """
    lowest, sentence = math.inf, ""
    ended = diverged = 0
    for row in read_lines(path) if path.exists() else []:
        key, curve = row["key"], row["curve"]
        if key["task"].endswith(WITHOUT_SCHEDULE):
            continue
        if curve["reached"]:
            return None, ""
        ended += 1
        diverged += bool(curve.get("diverged"))
        losses = [loss for loss in curve["val_loss"] if loss is not None]
        if losses and min(losses) < lowest:
            lowest = min(losses)
            sentence = (
                f" The lowest of the runs that ended was {lowest:.4g}, at batch size "
                f"{key['batch_size']} with {curve['steps'][-1]:,} steps."
            )
    if not ended:
        return lowest, " The first run has not ended yet."
    if diverged:
        sentence += (
            f" In {diverged} of {ended} runs the loss was no longer finite at the end: look for a "
            "learning rate that is too high, or a division or logarithm in the loss."
        )
    return lowest, sentence
