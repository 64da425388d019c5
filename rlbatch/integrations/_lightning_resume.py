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


def is_within_epoch(trainer: Any) -> bool:
    """Whether the checkpoint is from behind a batch, and before the end of its epoch."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    is_behind = epoch.restarted_on_train_batch_end or epoch.restarted_on_last
    return fit.restarted_mid_epoch and is_behind


def stay_in_epoch(trainer: Any) -> None:
    """Stay in an epoch all of whose batches were done when the checkpoint was written.

    Lightning counts it as over, without its end: no validation, no `on_train_epoch_end`, and no
    `on_train_epoch_start` of the next one.

    Args:
        trainer: That has read its checkpoint and is about to train.
    """
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not epoch.restarted_on_train_batch_end:
        return
    if epoch.batch_progress.is_last_batch:  # then it has counted already
        for counts in (fit.epoch_progress.current, fit.epoch_progress.total):
            counts.processed -= 1
            counts.completed -= 1
    epoch.batch_progress.increment_completed()
    epoch.update_restart_stage()


def begin_epoch_anew(trainer: Any) -> None:
    """Let an epoch begin as others do.

    Its start, or the end of the one before, wrote the checkpoint. There Lightning numbers its
    batches on, forgets that it has begun or, with `max_steps`, ends the one before once more.
    """
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if fit.restarted_on_epoch_start:
        fit.epoch_progress.current.ready += 1
        epoch.restarting = False
    elif fit.restarted_on_epoch_end:
        fit.epoch_progress.increment_completed()
        fit._restarting = epoch.restarting = False  # by its setter, `fit` would be restarting still
        fit.reset_restart_stage()
        epoch.reset_restart_stage()


def validate_anew(trainer: Any) -> None:
    """Let the next validation begin at its first batch.

    Lightning would go on within one that was under way, without the metrics of its first batches.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    loop.reset_restart_stage()


def validate(trainer: Any) -> None:
    """Make a validation within a training epoch, as Lightning does it."""
    epoch, first = trainer.fit_loop.epoch_loop, trainer._logger_connector._first_loop_iter
    trainer.validating = True
    epoch._batches_that_stepped -= 1  # what loggers use as x-axis: the step before is not counted
    epoch.val_loop.run()
    epoch._batches_that_stepped += 1
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first


def step_on_plateaus(trainer: Any) -> None:
    """Let schedules go by the metrics of the epoch that ends, where those are known.

    Lightning leaves that out in the first epoch behind a checkpoint, which holds no metrics.
    """
    known = trainer.callback_metrics
    plateaus = [c for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    if all(config.monitor in known for config in plateaus):
        trainer.fit_loop._restarting = False
