"""What Lightning's loops need so that a checkpoint is gone on from as if nothing had happened."""

from __future__ import annotations

from typing import Any

_COUNTS = ("ready", "started", "processed", "completed")


def number_anew(trainer: Any, parts: int) -> None:
    """Let a step that was under way come again under the same numbers of batches.

    By them Lightning divides the losses, which must round alike.

    Args:
        trainer: That has read its checkpoint.
        parts: Batches of the step that were done with.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.current, progress.total):
        for name in _COUNTS:
            setattr(counts, name, getattr(counts, name) - parts)


def is_within_validation(trainer: Any) -> bool:
    """Whether the checkpoint is from the middle of a validation, which Lightning goes on with."""
    return trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation


def validate(trainer: Any) -> None:
    """Make a validation within a training epoch, as Lightning does it."""
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first
