"""What a Trainer counts in batches and steps, led by the samples that the plain run would have."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rlbatch.data.delivery import Delivered
from rlbatch.integrations._lightning_data import PlainCount
from rlbatch.integrations._lightning_resume import (
    begin_epoch_anew,
    is_within_epoch,
    number_anew,
    stay_in_epoch,
    validate_anew,
)
from rlbatch.integrations._torch_loop import TorchLoop

_NEVER = sys.maxsize  # no count gets there


class UsersLimits:
    """The Trainer's own settings in batches and steps, to be put back when a fit is over.

    Attributes:
        trainer: The Trainer.
        max_steps: After which the fit ends, in steps of the user's batch size; -1 for no limit.
        min_steps: Before which it does not.
    """

    def __init__(self, trainer: Any) -> None:
        """Note them, before the Trainer reads its checkpoint."""
        loop = trainer.fit_loop.epoch_loop
        self.trainer, self._accumulation = trainer, trainer.accumulate_grad_batches
        self.max_steps, self._min_steps = loop.max_steps, loop.min_steps
        self.min_steps = loop.min_steps or 0
        if self.max_steps != -1:
            # A run of more and smaller steps than the plain one would not be resumed.
            loop.max_steps = _NEVER

    def give_back(self) -> None:
        """Put them back."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        trainer.accumulate_grad_batches = self._accumulation
        loop.max_steps, loop.min_steps = self.max_steps, self._min_steps


class TrainerCounts:
    """Leads when a Trainer validates, how many batches its epoch has and after which step it ends.

    Attributes:
        plain: What the plain run counts.
        first_epoch: Of the Trainer, when the controller's data begin.
        due: A validation is due behind the latest optimizer step.
        makes_up: One that was due when the checkpoint was written has yet to be made.
        ends_epoch: The checkpoint is from behind the last batch of an epoch, which has yet to end.
    """

    def __init__(self, users: UsersLimits, plain: PlainCount, loop: TorchLoop) -> None:
        """Start at the beginning of the Trainer's epoch."""
        self._users, self.plain, self._loop = users, plain, loop
        self._trainer = users.trainer
        self._validates_every: int | None = self._trainer.val_check_batch
        self.first_epoch: int = self._trainer.current_epoch
        # Epoch and position behind the optimizer step that comes next, and behind the latest.
        self._at = self._done = (self.first_epoch, 0)
        self.due = self.makes_up = self.ends_epoch = False

    def go_on(self, state: Mapping[str, Any], epoch: int, position: int) -> None:
        """Let Lightning find its place again: behind an optimizer step, unless within one.

        Args:
            state: `first_epoch`, `due`, `within_step` and `parts` of the callback's.
            epoch: Of the controller's data.
            position: In it.
        """
        trainer = self._trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        number_anew(trainer, state["parts"])
        self.first_epoch, self.due = state["first_epoch"], state["due"]
        self._at = self._done = self.first_epoch + epoch, position
        trainer.accumulate_grad_batches = _NEVER if state["within_step"] else 1
        self.makes_up = self.due  # Lightning would leave that out, or go on within it
        validate_anew(trainer)
        self._set_due(False)
        is_behind = is_within_epoch(trainer)
        self.ends_epoch = is_behind and (progress.is_last_batch or self._is_over)
        trainer.fit_loop.max_batches = progress.current.ready if self.ends_epoch else _NEVER
        if self.ends_epoch:
            stay_in_epoch(trainer)
        elif is_behind and trainer.fit_loop.epoch_loop.restarted_on_last:
            trainer.fit_loop.epoch_loop._batches_that_stepped += 1  # comes behind a validation
        begin_epoch_anew(trainer)

    def end_epoch(self) -> None:
        """End the epoch that had yet to."""
        self.ends_epoch = False
        self.limit()

    def expect_epoch(self) -> None:
        """Expect an epoch's batches at the present size."""
        self._trainer.fit_loop.max_batches = self._batches_for(self.plain.samples)

    def begin_batch(self, delivered: Delivered, ready: int) -> bool:
        """Expect no more batches than are left; return whether this one ends the epoch.

        Args:
            delivered: The batch.
            ready: Its number in the epoch, from 1.
        """
        loop, end = self._trainer.fit_loop, delivered.step_start + delivered.step_samples
        ends_epoch = delivered.is_last and end >= self.plain.samples
        self._at = self.first_epoch + delivered.epoch, end
        # The fetcher knows the plain run's number of batches, and would stop there.
        fetcher = loop._data_fetcher
        fetcher.length, fetcher.done = None, False
        loop.epoch_loop.batch_progress.is_last_batch = ends_epoch
        rest = self.plain.samples - end
        loop.max_batches = ready if ends_epoch else ready + self._batches_for(rest)
        self._set_due(False)
        return ends_epoch

    def begin_step(self, delivered: Delivered) -> int:
        """Stand at a step's start; return the Trainer's epoch."""
        self._at = self.first_epoch + delivered.epoch, delivered.step_start
        return self._at[0]

    def end_step(self) -> None:
        """The optimizer has stepped: say what is due now, and where the run ends."""
        before, self._done = self._done, self._at
        if before[0] != self._at[0]:
            before = self._at[0], 0  # an epoch that was left early had no validation to make up
        self.limit()
        self.due = self._validations(self._done) > self._validations(before)
        self.due &= self._trainer.fit_loop.epoch_loop._should_check_val_epoch()
        self._set_due(self.due)

    def schedule_steps(self, every: int) -> int:
        """Return the steps due of a schedule that makes one after so many batches."""
        return self.plain.schedule_steps(every, *self._at)

    def limit(self) -> None:
        """End the run where the plain one does, in samples."""
        if self.ends_epoch:
            return
        loop, count, most = self._trainer.fit_loop.epoch_loop, self.plain.steps, self._users
        made, batch_size = loop.global_step, self._loop.adapter.batch_size
        done = count.steps(*self._done)
        if most.min_steps:
            loop.min_steps = 0 if done >= most.min_steps else made + 1
        if most.max_steps == -1:
            return
        if done >= most.max_steps:
            loop.max_steps = made
            return
        left = (most.max_steps - done) * count.base_batch_size
        loop.max_steps = made + max(1, -(-left // batch_size))
        epoch, position = self._done
        if position >= count.dataset_size:
            epoch, position = epoch + 1, 0
        rest = count.limit(most.max_steps, epoch, position)
        if rest is not None and rest > 0:
            self._loop.limit_next(rest)

    @property
    def _is_over(self) -> bool:
        """Whether all steps of the run were made."""
        most = self._users.max_steps
        return most != -1 and self.plain.steps.steps(*self._done) >= most

    def _batches_for(self, samples: int) -> int:
        """Return the batches of so many samples if the batch size stays; at least one."""
        adapter = self._loop.adapter
        size, limit = adapter.batch_size, adapter.config.limits.known_micro_batch_size
        if limit is not None:
            size = min(size, limit * self._trainer.world_size)
        return max(1, -(-samples // size))

    def _validations(self, place: tuple[int, int]) -> int:
        by_epochs = self._trainer.check_val_every_n_epoch is not None
        return self.plain.validations(self._validates_every, place, by_epochs)

    def _set_due(self, due: bool) -> None:
        if self._validates_every is not None:  # else by the clock
            self._trainer.val_check_batch = 1 if due else _NEVER
