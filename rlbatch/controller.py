"""`BatchController`: adapts the batch size of a plain PyTorch loop while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from rlbatch.control import checks, loop_order
from rlbatch.control.build import named_policy
from rlbatch.control.config import ControllerConfig
from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.limits import require_samples
from rlbatch.control.loader import ControlledLoader
from rlbatch.control.plain_run import PlainLoop
from rlbatch.control.ranks import Ranks
from rlbatch.control.run_view import RunView
from rlbatch.control.saved_state import all_or_nothing, check_state
from rlbatch.control.settings import Settings, make_config
from rlbatch.control.user_state import UserState
from rlbatch.data.plain_steps import StepSamples
from rlbatch.data.run_schedule import RunSchedule
from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy


class BatchController(RunView):
    """Decides, every few steps, how many samples the next optimizer steps take.

        controller = rlbatch.BatchController(model, optimizer, batch_size=64)
        loader = controller.loader(DataLoader(train_set, batch_size=64, shuffle=True))
        for epoch in range(epochs):
            for x, y in loader:
                loss = loss_fn(model(x), y)
                controller.backward(loss)      # instead of loss.backward()
                controller.step()              # instead of optimizer.step() and zero_grad()
            scheduler.step()

    What the loader hands out are micro-batches: of the whole batch, or of a part of it where the
    batch exceeds `micro_batch_size`. `step` does nothing before the last part. With the policy
    `fixed`, the run is the plain one, bit for bit.

    Clipping: `controller.step(clip_norm=1.0)`, or clip between `backward` and `step`, when
    `controller.batch_complete`, after `controller.unscale_()` if there is a GradScaler.

    A loss that is no mean over samples (over tokens, with class weights) says what it is the mean
    of: `controller.backward(loss, weight=tokens)`. A batch is left out by `controller.skip()`.

    Schedules: those by epochs are stepped as always. One by steps goes by samples with
    `scheduler = controller.schedule(scheduler)`; the loop steps it as before.

    Checkpoints: right after a `step`, save `controller.state_dict()` beside those of the rest. To
    resume, make all as before, load, and iterate: an epoch goes on behind its last sample.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        batch_size: int,
        policy: Policy | str = "default",
        config: ControllerConfig | None = None,
        scaler: Any = None,
        accumulator: Callable[[Ranks], GradientAccumulator] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Prepare a run; nothing happens before `loader` is called.

        Args:
            model: What is trained.
            optimizer: Its optimizer.
            batch_size: The user's, for which the learning rate was chosen; the loader's.
            policy: A name (`default`, `fixed`, `goodput`, a policy file ...) or a policy. Without
                `target_loss` or `budget`, `default` is the rule `saving-ramp` where their number is
                given, and else the rule `rlbatch.control.build.WITHOUT_PLAN`.
            config: The settings, or give them as further arguments.
            scaler: A `torch.amp.GradScaler`, which then is used in here.
            accumulator: Makes what runs passes and steps, for a framework's own way; None: torch's.
            **settings: Fields of `ControllerConfig` and of its parts, see `Settings`.

        Raises:
            ConfigurationError: Settings contradict themselves, or are given twice.
            UnknownNameError: There is no policy of that name.
        """
        self.base_batch_size = batch_size = require_samples("batch_size", batch_size)
        self.config = make_config(config, settings)
        checks.check_training(model, optimizer)
        self.model, self.optimizer = model, optimizer
        self.policy, name = named_policy(policy, self.config)
        self._loop = PlainLoop(
            model=model,
            optimizer=optimizer,
            batch_size=batch_size,
            policy=self.policy,
            policy_name=name,
            config=self.config,
            scaler=scaler,
            accumulator=accumulator,
        )
        self._state: Mapping[str, Any] | None = None  # that was loaded
        self._user = UserState()

    def loader(self, loader: DataLoader[Any]) -> ControlledLoader:
        """Return a loader like the given one, whose batch size the controller changes.

        Raises:
            ConfigurationError: It has another batch size than was said, or cannot be resized.
        """
        if self._parts is not None:
            raise ConfigurationError(checks.ONE_LOADER)
        self._parts = self._loop.begin(self, loader, self._user)
        if self._state is not None:
            state, self._state = self._state, None
            with all_or_nothing(self):  # a state that is refused is not tried again
                self._parts.load_state_dict(state)
                self._state = state
        return self._parts.loader

    def schedule(self, scheduler: Any, steps: int = 1) -> RunSchedule:
        """Let a learning-rate schedule by steps go by samples, as long as the user's steps are.

            scheduler = controller.schedule(OneCycleLR(optimizer, 0.1, total_steps=steps))

        The loop calls `scheduler.step()` as before, behind each batch. Its `state_dict` holds the
        wrapped scheduler's, too.

        Args:
            scheduler: Made for steps of the user's batch size.
            steps: How many of its own it makes for each of these.

        Raises:
            ConfigurationError: It follows a metric instead of counting steps.
        """
        return self._user.schedule(scheduler, self, steps)

    def on_rollback(
        self, save: Callable[[], Any] | Any, restore: Callable[[Any], Any] | None = None
    ) -> None:
        """Let a roll-back restore something else than what the optimizer and the model hold.

            controller.on_rollback(ema_model)  # anything with state_dict and load_state_dict
            controller.on_rollback(lambda: queue.clone(), queue.copy_)

        What is saved is part of `state_dict` where the copy of the weights is.

        Args:
            save: Returns what is to be kept, before a chunk; or an object with a state.
            restore: Is given that when the chunk is undone.

        Raises:
            ConfigurationError: There is no way to save or restore it.
        """
        self._user.on_rollback(save, restore)

    def backward(
        self,
        loss: Tensor,
        weight: float | Tensor | None = None,
        retain_graph: bool | None = None,
        **others: Any,
    ) -> None:
        """Run the backward pass of the micro-batch's mean loss, with its weight in the batch.

        With weights w and the gradients g of the parts (of all ranks), the step's gradient is
        sum(w g) / sum(w), before anything clips it.

        Args:
            loss: A mean.
            weight: What it is the mean of, where that is not the samples: the number of tokens, the
                sum of class weights. Give it in every call. Where it is 0, the part adds nothing.
            retain_graph: As of `loss.backward`.
            **others: What else `loss.backward` takes, at its defaults.

        Raises:
            DeliveryError: There is no micro-batch to which the loss could belong, or the gradients
                of the parts before it were touched.
            ConfigurationError: One of the others is not at its default.
        """
        if others:
            loop_order.require_defaults(others)
        if (told := self._run.backward(loss, weight, retain_graph)) is not None:
            self._run.adapter.after_backward(told)

    def within_memory(self) -> AbstractContextManager[None]:
        """Run a micro-batch's forward and backward pass, which may run out of memory.

            for x, y in loader:
                with controller.within_memory():
                    controller.backward(loss_fn(model(x), y))
                controller.step()

        If it does, the batch comes again from its start with the same random state, in parts of
        half the size; weights and optimizer have not changed, but running statistics (batch
        normalisation) have seen the samples. The rest of the block is skipped, and `step` does
        nothing.

        Raises:
            DeliveryError: There is no micro-batch under way.
            ConfigurationError: Several ranks share the training, and `micro_batch_size` is not
                `auto`.
        """
        return self._run.passes.watch()

    def unscale_(self) -> None:
        """Divide the GradScaler's factor out of the gradients, for clipping them yourself."""
        if self.batch_complete:
            self._run.accumulator.unscale_()

    def step(self, clip_norm: float | None = None) -> int:
        """Step the optimizer and zero the gradients, if the batch is complete.

        Args:
            clip_norm: Clip the gradient to this norm before.

        Returns:
            The samples of the step, or 0 when there was none yet.

        Raises:
            DeliveryError: The micro-batch had no backward pass.
        """
        run, passes = self._run, self._run.passes
        if passes.repeating:
            passes.repeating = False
            return 0
        if self.ousted:
            checks.require_owner(self.model, self)
        applied = None if run.coupling.factor == 1.0 else run.coupling.applied()
        delivered = run.accumulator.step(applied, clip_norm)
        if delivered is None:
            return 0
        if passes.finds_limit:
            passes.end_step()
        samples, epoch = delivered.step_samples, delivered.epoch
        run.user.end_step(epoch, run.accumulator.left_out)
        position = delivered.step_start + samples
        run.adapter.end_step(samples, epoch=epoch, position=position)
        return StepSamples.of(samples, self.base_batch_size, run.plain_steps.advance(position))

    def skip(self) -> None:
        """Leave out a batch, in place of `backward` and `step`: the optimizer does not step.

            if not torch.isfinite(loss):
                controller.skip()
                continue

        The whole optimizer step is left out that it belongs to: parts that came before are dropped,
        those behind it do not come. With several ranks, all of them have to leave it out.

        Raises:
            DeliveryError: There is no batch under way.
        """
        self._run.skip()

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it."""
        self._run.adapter.report_validation(loss)

    def paused(self) -> AbstractContextManager[None]:
        """Stop the wall clock within the block, for a validation in the middle of an epoch."""
        return self._run.adapter.paused()

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._run.adapter.disable(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last optimizer step, torch's global generators included.

        A batch that the loop has in its hands comes again in the resumed run, and so do those that
        workers have prefetched, in their sizes. `torch.load(file, weights_only=True)` reads it.
        """
        return self._run.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, before or after `loader` is called.

        Load model and optimizer first. The log is continued behind the decisions that the state
        knows of; later ones, of steps that are now lost, are dropped.

        Raises:
            ConfigurationError: The state is of another version, batch size or policy, or damaged.
                Nothing of it was taken then: the controller is what it was.
        """
        if self._parts is None:  # or else the ranks refuse it together
            check_state(state, self.base_batch_size)
        with all_or_nothing(self):
            self._state = state
            if self._parts is not None:
                self._parts.load_state_dict(state)

    def close(self) -> None:
        """Note the end of the run in the log and close it."""
        checks.release(self.model, self)
        if self._parts is not None:
            self._parts.close()
