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


def begin_next_epoch(trainer: Any) -> None:
    """Let an epoch be over whose last batch wrote the checkpoint.

    Lightning trains the next one as more of it: without `on_train_epoch_start`, and batches are
    numbered on. From a second checkpoint of that kind it goes on with an epoch that is not counted.

    Args:
        trainer: That has read its checkpoint and is about to train.
    """
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    is_over = fit.restarted_mid_epoch and epoch.restarted_on_train_batch_end
    if not (is_over and epoch.batch_progress.is_last_batch):
        return
    fit.reset_restart_stage()
    epoch.batch_progress.increment_completed()
    epoch._batches_that_stepped += 1  # no checkpoint has the latest one
    epoch.restarting = False
    epoch.reset_restart_stage()


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
