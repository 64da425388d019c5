"""One fit under control: micro-batches put together, and what the Trainer counts kept in step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rlbatch.control.config import ControllerConfig
from rlbatch.control.saved_state import require_like
from rlbatch.control.users_parts import in_users_parts
from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations._lightning_averages import average_hooks
from rlbatch.integrations._lightning_checks import require_whole_epochs
from rlbatch.integrations._lightning_data import EpochLoader
from rlbatch.integrations._lightning_gradient import StepGradient, Weight, WeightOf
from rlbatch.integrations._lightning_resume import is_within_validation, number_anew, validate
from rlbatch.integrations._lightning_schedules import StepSchedules
from rlbatch.integrations._lightning_steps import MicroBatchTracker, divisor
from rlbatch.integrations._torch_loop import TorchLoop
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

Hook = tuple[Any, Callable[[Any], Any] | None]

# What a checkpoint holds of a fit, by kind.
_STATE = {"controller": None, "first_epoch": 0, "due": False, "within_step": False, "parts": 0}
_NEVER = sys.maxsize  # no count gets there


class FitRun:
    """Steers one `Trainer.fit`.

    Lightning's batches are micro-batches here. It steps the optimizer, and zeroes the gradients,
    where the number of a batch is a multiple of `accumulate_grad_batches`: that is chosen for each
    batch so that it does so where a step ends. What else it counts in batches or steps is led in
    the same way, by samples.
    """

    def __init__(self, trainer: Any) -> None:
        """Note what has to be put back, before the Trainer reads its checkpoint."""
        self.trainer = trainer
        self._loader: EpochLoader | None = None
        loop = trainer.fit_loop.epoch_loop
        self._users = trainer.accumulate_grad_batches, loop.max_steps, loop.min_steps
        self.max_steps, self.min_steps = loop.max_steps, loop.min_steps or 0
        if self.max_steps != -1:
            # A run of more and smaller steps than the plain one would not be resumed.
            loop.max_steps = _NEVER
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._schedules: StepSchedules | None = None
        self._validates_every: int | None = None
        self._first_epoch = 0  # of the Trainer, when the controller's data begin
        self._divisor, self._within = 1, False
        self._at = (0, 0)  # epoch and position behind the optimizer step that comes next
        self._done = (0, 0)  # behind the latest
        self._loop: TorchLoop | None = None
        self._gradient: StepGradient | None = None
        # Of a validation: it is due behind the latest optimizer step.
        self._finished = self.due = False
        self._makes_up = False  # one that was due when the checkpoint was written
        self.samples = 0  # of the latest optimizer step

    # -- a run --

    def start(
        self,
        loader: EpochLoader,
        policy: Policy | str,
        config: ControllerConfig,
        state: Mapping[str, Any] | None,
        hooks: Sequence[Hook] = (),
        weight_of: WeightOf | None = None,
    ) -> None:
        """Make the controller, now that the Trainer has its optimizer and has read its checkpoint.

        Args:
            loader: The training data.
            policy: Decides.
            config: The settings.
            state: Of `state_dict`, to go on from; None begins anew.
            hooks: What a roll-back restores, too.
            weight_of: From a batch to what its loss is the mean of.

        Raises:
            ConfigurationError: The checkpoint is from the middle of an epoch without a controller,
                or its state of the callback is damaged.
        """
        if state is not None:
            require_like(state, _STATE, "the callback's state")
        self._loader, trainer = loader, self.trainer
        first_epoch = trainer.current_epoch if state is None else state["first_epoch"]
        self._loop = loop = self._make_loop(loader, policy, config, first_epoch)
        for hook in (*average_hooks(trainer), *hooks):
            loop.adapter.on_rollback(*hook)
        if state is not None:
            loop.load_state_of_ranks(state["controller"])
        tracker = MicroBatchTracker(trainer.optimizers[0], loop.ranks)
        self._gradient = StepGradient(trainer, tracker, weight_of, loop.changes)
        loader.elastic, loader.on_fetch = loop.loader, self._before_fetch
        self._validates_every = trainer.val_check_batch
        self._first_epoch = trainer.current_epoch
        if state is None:
            require_whole_epochs(trainer)
            self._done = trainer.current_epoch, 0
        else:
            self._go_on(state, *loop.place)
        self._at = self._done
        self._schedules = StepSchedules(trainer, self._due, loop.changes)
        self._limit()
        loop.attach()

    def _make_loop(
        self, loader: EpochLoader, policy: Policy | str, config: ControllerConfig, first_epoch: int
    ) -> TorchLoop:
        trainer, count = self.trainer, loader.count
        model, own = trainer.strategy.model, count.batch_size // trainer.world_size
        return TorchLoop(
            self,
            model,
            trainer.optimizers[0],
            loader.plain,
            batch_size=count.steps.base_batch_size,
            policy=policy,
            config=in_users_parts(config, model, own, accumulates=count.accumulation > 1),
            epochs=count.planned_epochs(trainer.max_epochs, self.max_steps) - first_epoch,
            scaler=self._scaler,
        )

    def _go_on(self, state: Mapping[str, Any], epoch: int, position: int) -> None:
        """Let Lightning find its place again: behind an optimizer step, unless within one."""
        trainer = self.trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        number_anew(trainer, state["parts"])
        self._first_epoch, self.due = state["first_epoch"], state["due"]
        self._done = self._first_epoch + epoch, position
        trainer.accumulate_grad_batches = _NEVER if state["within_step"] else 1
        trainer.fit_loop.max_batches = progress.current.ready if progress.is_last_batch else _NEVER
        # A checkpoint from between a step and its validation: Lightning would leave that out.
        within = is_within_validation(trainer)
        self._set_due(self.due and within)
        self._makes_up = self.due and not within

    def _before_fetch(self) -> None:
        self.make_up_validation()
        self._require_loop().adapter.resume()

    def make_up_validation(self) -> None:
        """Validate where the checkpoint is from a step whose validation had yet to come."""
        if not self._makes_up:
            return
        self._makes_up = False
        self._require_loop().loader.restore_random_state()  # the validation draws from it
        validate(self.trainer)

    def end_validation(self) -> None:
        """The validation is over that was due."""
        self.due = False

    def _due(self, every: int) -> int:
        return self.loader.count.schedule_steps(every, *self._at)

    def pause(self) -> None:
        """Stop the clock until the next batch is fetched."""
        self._require_loop().adapter.pause()

    def finish(self) -> None:
        """Put everything back, once."""
        if self._finished:
            return
        self._finished = True
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        trainer.accumulate_grad_batches, loop.max_steps, loop.min_steps = self._users
        if self._schedules is not None:
            self._schedules.give_back()
        if self._gradient is not None:
            self._gradient.close()
        if self._loop is not None:
            self._loop.adapter.pause()
            self._loop.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state and what Lightning needs to go on."""
        return {
            "controller": self._require_loop().state_of_ranks(),
            "first_epoch": self._first_epoch,
            "due": self.due,
            "within_step": self._within or self._tracker.delivered is not None,
            "parts": self._tracker.parts,
        }

    # -- what the loader tells --

    def begin_epoch(self) -> None:
        """An iteration over the loader begins."""
        self._require_loop().begin_epoch()
        if self._gradient is not None:
            self._gradient.abandon()
            self._gradient.active(True)
        if self._tracker.abandon():
            self.trainer.optimizers[0].zero_grad()

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to the Trainer."""
        self._tracker.arrive(delivered)
        if delivered.position == 0:
            self._require_loop().begin_step(delivered)

    def end_epoch(self) -> None:
        """The loader has nothing more."""
        self._require_loop().adapter.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration."""
        if self._gradient is not None:
            self._gradient.active(False)

    # -- a batch --

    def expect_epoch(self) -> None:
        """Expect an epoch's batches at the present size."""
        self.trainer.fit_loop.max_batches = self.batches_for(self.loader.count.samples)

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Let Lightning step after this batch if it is its step's last, and else not."""
        trainer, delivered = self.trainer, self._tracker.delivered
        if delivered is None:
            raise DeliveryError("A batch begins that the controller's loader did not hand out.")
        loop, ready = trainer.fit_loop, batch_idx + 1
        end = delivered.step_start + delivered.step_samples
        epoch, is_last = self._first_epoch + delivered.epoch, delivered.is_last
        ends_epoch = is_last and end >= self.loader.count.samples
        if delivered.position == 0:
            self._at = epoch, delivered.step_start
            if self._schedules is not None:
                self._schedules.begin_step(epoch, is_first=delivered.step_start == 0)
        self._at, self._within = (epoch, end), not is_last
        self._divisor = divisor(ready, delivered, ends_epoch)
        trainer.accumulate_grad_batches = self._divisor
        # The fetcher knows the plain run's number of batches, and would stop there.
        fetcher = loop._data_fetcher
        fetcher.length, fetcher.done = None, False
        loop.epoch_loop.batch_progress.is_last_batch = ends_epoch
        rest = self.loader.count.samples - end
        loop.max_batches = ready if ends_epoch else ready + self.batches_for(rest)
        self._set_due(False)
        if delivered.position == 0 and batch_idx % self._divisor:
            optimizer = trainer.optimizers[0]
            loop.epoch_loop.automatic_optimization._on_before_zero_grad(optimizer)
            trainer.lightning_module.optimizer_zero_grad(epoch, batch_idx, optimizer)
        self._step_gradient.begin(delivered, batch)

    def weigh(self, weight: Weight) -> None:
        """Take what the loss of the batch under way is the mean of."""
        self._step_gradient.weigh(weight)

    def before_backward(self, loss: Tensor) -> None:
        """Give a batch's loss, divided by Lightning and scaled, its weight in the gradient."""
        self._step_gradient.before_backward(loss, self._divisor)

    def after_backward(self) -> None:
        """Let the gradient be measured, before anything clips it."""
        told, adapter = self._step_gradient.after_backward(), self._require_loop().adapter
        if told is None:
            return
        if self._tracker.is_weighted:
            adapter.leave_unmeasured()
        adapter.after_backward(told)

    def before_step(self) -> None:
        """The optimizer is about to step."""
        self._step_gradient.before_step()

    def end_batch(self, outputs: Any) -> bool:
        """Return whether the optimizer has stepped; if so, decide."""
        skipped = not self._tracker.has_backward
        delivered = self._tracker.finish()
        if skipped:  # training_step returned None
            self._require_loop().adapter.abandon_step()
            if self.loader.count.accumulation == 1:  # else the plain run leaves out this part only
                self._step_gradient.leave_out()
        factor = self._divisor / delivered.micro_batches
        if factor != 1.0 and isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
            outputs["loss"] = outputs["loss"] * factor  # as it is with the number of micro-batches
        if not delivered.is_last:
            return False
        self.samples = delivered.step_samples
        before, self._done = self._done, self._at
        if before[0] != self._at[0]:
            before = self._at[0], 0  # an epoch that was left early had no validation to make up
        self._require_loop().end_step(delivered)
        self._limit()
        self.due = self._validations(self._done) > self._validations(before)
        self._set_due(self.due)
        return True

    def batches_for(self, samples: int) -> int:
        """Return the batches of so many samples if the batch size stays; at least one."""
        adapter = self._require_loop().adapter
        size, limit = adapter.batch_size, adapter.config.limits.known_micro_batch_size
        if limit is not None:
            size = min(size, limit * self.trainer.world_size)
        return max(1, -(-samples // size))

    # -- what Lightning counts --

    def _validations(self, place: tuple[int, int]) -> int:
        by_epochs = self.trainer.check_val_every_n_epoch is not None
        return self.loader.count.validations(self._validates_every, place, by_epochs)

    def _set_due(self, due: bool) -> None:
        if self._validates_every is not None:  # else by the clock
            self.trainer.val_check_batch = 1 if due else _NEVER

    def _limit(self) -> None:
        """End the run where the plain one does, in samples."""
        loop, count = self.trainer.fit_loop.epoch_loop, self.loader.count.steps
        made, batch_size = loop.global_step, self._require_loop().adapter.batch_size
        done = count.steps(*self._done)
        if self.min_steps:
            loop.min_steps = 0 if done >= self.min_steps else made + 1
        if self.max_steps == -1:
            return
        if done >= self.max_steps:
            loop.max_steps = made
            return
        left = (self.max_steps - done) * count.base_batch_size
        loop.max_steps = made + max(1, -(-left // batch_size))
        epoch, position = self._done
        if position >= count.dataset_size:
            epoch, position = epoch + 1, 0
        rest = count.limit(self.max_steps, epoch, position)
        if rest is not None and rest > 0:
            self._require_loop().limit_next(rest)

    @property
    def loader(self) -> EpochLoader:
        """The training data."""
        if self._loader is None:
            raise ConfigurationError("There are no training data before Trainer.fit has begun.")
        return self._loader

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides; None before the run has begun."""
        return None if self._loop is None else self._loop.adapter

    @property
    def _step_gradient(self) -> StepGradient:
        if self._gradient is None:
            raise ConfigurationError("There is no controller before Trainer.fit has begun.")
        return self._gradient

    @property
    def _tracker(self) -> MicroBatchTracker:
        return self._step_gradient.tracker

    def _require_loop(self) -> TorchLoop:
        if self._loop is None:
            raise ConfigurationError("There is no controller before Trainer.fit has begun.")
        return self._loop
