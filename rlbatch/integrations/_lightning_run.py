"""One fit under control: micro-batches put together, and what the Trainer counts kept in step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rlbatch.control.config import ControllerConfig
from rlbatch.control.random_state import RandomState
from rlbatch.control.saved_state import require_like
from rlbatch.control.users_parts import in_users_parts
from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations._lightning_averages import average_hooks
from rlbatch.integrations._lightning_checks import require_whole_epochs
from rlbatch.integrations._lightning_counts import TrainerCounts, UsersLimits
from rlbatch.integrations._lightning_data import EpochLoader
from rlbatch.integrations._lightning_gradient import StepGradient, Weight, WeightOf
from rlbatch.integrations._lightning_resume import validate
from rlbatch.integrations._lightning_schedules import StepSchedules
from rlbatch.integrations._lightning_steps import MicroBatchTracker, divisor
from rlbatch.integrations._torch_loop import TorchLoop
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

Hook = tuple[Any, Callable[[Any], Any] | None]

# What a checkpoint holds of a fit, by kind.
_STATE = {"controller": None, "first_epoch": 0, "due": False, "within_step": False, "parts": 0}


class FitRun:
    """Steers one `Trainer.fit`.

    Lightning's batches are micro-batches here. It steps the optimizer, and zeroes the gradients,
    where the number of a batch is a multiple of `accumulate_grad_batches`: that is chosen for each
    batch so that it does so where a step ends. What else it counts in batches or steps is led in
    the same way, by samples.

    Attributes:
        trainer: The Trainer.
        samples: Of the latest optimizer step.
    """

    def __init__(
        self,
        users: UsersLimits,
        loader: EpochLoader,
        policy: Policy | str,
        config: ControllerConfig,
        state: Mapping[str, Any] | None,
        hooks: Sequence[Hook] = (),
        weight_of: WeightOf | None = None,
    ) -> None:
        """Begin, now that the Trainer has its optimizer and has read its checkpoint.

        Args:
            users: The Trainer's own limits.
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
        self.trainer = trainer = users.trainer
        refused = _refused(trainer, state)
        self._users, self._finished = users, False
        self._divisor, self._within, self.samples = 1, False, 0
        self._before_validation: RandomState | None = None
        first_epoch = trainer.current_epoch
        if state is not None and refused is None:
            first_epoch = state["first_epoch"]
        self._loop = loop = self._make_loop(loader, policy, config, first_epoch)
        loop.ranks.require_same(state_to_go_on_from=int(state is not None))
        with loop.ranks.refuse_together():
            if refused is not None:
                raise refused
        for hook in (*average_hooks(trainer), *hooks):
            loop.adapter.on_rollback(*hook)
        if state is not None:
            loop.load_state_of_ranks(state["controller"])
        self._tracker = MicroBatchTracker(trainer.optimizers[0], loop.ranks)
        self._gradient = StepGradient(trainer, self._tracker, weight_of, loop.changes)
        loader.elastic, loader.on_fetch = loop.loader, self._before_fetch
        self._counts = counts = TrainerCounts(users, loader.count, loop)
        if state is not None:
            counts.go_on(state, *loop.place)
        self._schedules = StepSchedules(trainer, counts.schedule_steps, loop.changes)
        counts.limit()
        loop.attach()

    def _make_loop(
        self, loader: EpochLoader, policy: Policy | str, config: ControllerConfig, first_epoch: int
    ) -> TorchLoop:
        trainer, count = self.trainer, loader.count
        model, own = trainer.strategy.model, count.batch_size // trainer.world_size
        planned = count.planned_epochs(trainer.max_epochs, self._users.max_steps)
        return TorchLoop(
            self,
            model,
            trainer.optimizers[0],
            loader.plain,
            batch_size=count.steps.base_batch_size,
            policy=policy,
            config=in_users_parts(config, model, own, accumulates=count.accumulation > 1),
            epochs=planned - first_epoch,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
        )

    # -- the fit --

    @property
    def controller(self) -> LoopAdapter:
        """What decides."""
        return self._loop.adapter

    def expect_epoch(self) -> None:
        """Expect an epoch's batches at the present size."""
        self._counts.expect_epoch()

    def _before_fetch(self) -> bool:
        """Return whether the epoch has more batches."""
        self.make_up_validation()
        if not self._counts.ends_epoch:
            self._loop.adapter.resume()
            return True
        self._loop.loader.restore_random_state()  # the epoch's end may draw from it
        self._counts.end_epoch()
        return False

    def make_up_validation(self) -> None:
        """Validate where the checkpoint is from a step whose validation had yet to come."""
        counts = self._counts
        if counts.ends_epoch:
            self.trainer.fit_loop.epoch_loop._batches_that_stepped += 1
        if not counts.makes_up:
            return
        counts.makes_up = False
        self._loop.loader.restore_random_state()  # the validation draws from it
        self._before_validation = RandomState.now()
        validate(self.trainer)

    def begin_validation(self) -> None:
        """Let checkpoints from within it, which make it anew, draw what it has drawn."""
        self._loop.loader.goes_on_from = self._before_validation

    def end_validation(self) -> None:
        """The validation is over that was due."""
        self._counts.due = False
        self._before_validation = self._loop.loader.goes_on_from = None

    def finish(self) -> None:
        """Put everything back, once."""
        if self._finished:
            return
        self._finished = True
        self._schedules.give_back()
        self._gradient.close()
        self._loop.adapter.pause()
        self._loop.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state and what Lightning needs to go on."""
        return {
            "controller": self._loop.state_of_ranks(),
            "first_epoch": self._counts.first_epoch,
            "due": self._counts.due,
            "within_step": self._within or self._tracker.delivered is not None,
            "parts": self._tracker.parts,
        }

    # -- what the loader tells --

    def begin_epoch(self) -> None:
        """An iteration over the loader begins."""
        self._loop.begin_epoch()
        self._gradient.abandon()
        self._gradient.active(True)
        if self._tracker.abandon():
            self.trainer.optimizers[0].zero_grad()

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to the Trainer."""
        self._tracker.arrive(delivered)
        if delivered.position == 0:
            self._loop.begin_step(delivered)

    def end_epoch(self) -> None:
        """The loader has nothing more."""
        self._loop.adapter.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration."""
        self._gradient.active(False)

    # -- a batch --

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Let Lightning step after this batch if it is its step's last, and else not."""
        trainer, delivered, counts = self.trainer, self._tracker.delivered, self._counts
        if delivered is None:
            raise DeliveryError("A batch begins that the controller's loader did not hand out.")
        begins, ready = delivered.position == 0, batch_idx + 1
        if begins:
            epoch = counts.begin_step(delivered)
            self._schedules.begin_step(epoch, is_first=delivered.step_start == 0)
        ends_epoch = counts.begin_batch(delivered, ready)
        self._within = not delivered.is_last
        self._divisor = divisor(ready, delivered, ends_epoch)
        trainer.accumulate_grad_batches = self._divisor
        if begins and batch_idx % self._divisor:
            optimizer, loop = trainer.optimizers[0], trainer.fit_loop.epoch_loop
            loop.automatic_optimization._on_before_zero_grad(optimizer)
            epoch = counts.first_epoch + delivered.epoch
            trainer.lightning_module.optimizer_zero_grad(epoch, batch_idx, optimizer)
        self._gradient.begin(delivered, batch)

    def weigh(self, weight: Weight) -> None:
        """Take what the loss of the batch under way is the mean of."""
        self._gradient.weigh(weight)

    def before_backward(self, loss: Tensor) -> None:
        """Give a batch's loss, divided by Lightning and scaled, its weight in the gradient."""
        self._gradient.before_backward(loss, self._divisor)

    def after_backward(self) -> None:
        """Let the gradient be measured, before anything clips it."""
        told, adapter = self._gradient.after_backward(), self._loop.adapter
        if told is None:
            return
        if self._tracker.is_weighted:
            adapter.leave_unmeasured()
        adapter.after_backward(told)

    def before_step(self) -> None:
        """The optimizer is about to step."""
        self._gradient.before_step()

    def end_batch(self, outputs: Any) -> bool:
        """Return whether the optimizer has stepped; if so, decide."""
        skipped = not self._tracker.has_backward
        delivered = self._tracker.finish()
        if skipped:  # training_step returned None
            self._loop.adapter.abandon_step()
            if self._counts.plain.accumulation == 1:  # else the plain run leaves out this part only
                self._gradient.leave_out()
        factor = self._divisor / delivered.micro_batches
        if factor != 1.0 and isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
            outputs["loss"] = outputs["loss"] * factor  # as it is with the number of micro-batches
        if not delivered.is_last:
            return False
        self.samples = delivered.step_samples
        self._loop.end_step(delivered)
        self._counts.end_step()
        self._before_validation = RandomState.now() if self._counts.due else None
        return True


def _refused(trainer: Any, state: Mapping[str, Any] | None) -> ConfigurationError | None:
    """Return why this process cannot go on from a checkpoint; others wait to hear of it."""
    try:
        if state is None:
            require_whole_epochs(trainer)
        else:
            require_like(state, _STATE, "the callback's state")
    except ConfigurationError as error:
        return error
    return None
