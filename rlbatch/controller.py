"""`BatchController`: adapts the batch size of a plain PyTorch loop while it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from rlbatch.control import checks
from rlbatch.control.build import keeps_size, named_policy
from rlbatch.control.config import ControllerConfig
from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.limits import require_samples
from rlbatch.control.loader import ControlledLoader, loader_sizes, sizes_for_model
from rlbatch.control.memory import make_gauge
from rlbatch.control.memory_guard import MemoryGuard
from rlbatch.control.ranks import Ranks
from rlbatch.control.saved_state import all_or_nothing, require_like
from rlbatch.control.schedule_watch import ScheduleWatch
from rlbatch.control.settings import Settings, make_config
from rlbatch.control.torch_parts import torch_parts
from rlbatch.control.user_state import UserState
from rlbatch.control.users_parts import warn_of_smaller_parts
from rlbatch.data.delivery import Delivered
from rlbatch.data.plain_steps import PlainSteps, SampleCount, StepSamples
from rlbatch.data.sample_schedule import RunSchedule
from rlbatch.data.step_plan import micro_batch_totals
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.loop_adapter import LoopAdapter, check_state
from rlbatch.policy.base import Policy

_NO_LOADER = "The controller has no loader yet. Call controller.loader(DataLoader(...)) first."


class BatchController:
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

    Checkpoints: right after a `step`, save `controller.state_dict()` beside those of model,
    optimizer and scheduler. To resume, make all objects as before, load, and iterate again: an
    interrupted epoch is continued behind its last sample.
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
            accumulator: Makes what runs backward passes and steps, for a framework that has its
                own way; None: torch's.
            **settings: Fields of `ControllerConfig` and of its parts, see `Settings`.

        Raises:
            ConfigurationError: Settings contradict themselves, or are given twice.
            UnknownNameError: There is no policy of that name.
        """
        require_samples("batch_size", batch_size)
        self.config = make_config(config, settings)
        checks.check_training(model, optimizer)
        self.model, self.optimizer = model, optimizer
        self.base_batch_size = batch_size
        self.policy, self._policy_name = named_policy(policy, self.config)
        self._scaler, self._accumulator_of = scaler, accumulator
        self._adapter: LoopAdapter | None = None
        self._loader: ControlledLoader | None = None
        self._accumulator = self._make_accumulator(Ranks())
        self._memory: MemoryGuard | None = None
        self._repeating = False  # behind a pass that ran out of memory, until `step`
        self._state: Mapping[str, Any] | None = None  # that was loaded
        self._dataset_size = 1
        self._user = UserState()
        self._plain_steps = PlainSteps(SampleCount(batch_size, 1))

    def loader(self, loader: DataLoader[Any]) -> ControlledLoader:
        """Return a loader like the given one, whose batch size the controller changes.

        Raises:
            ConfigurationError: The loader has another batch size than was said, it cannot be
                resized, or several processes share the training.
        """
        if self._loader is not None:
            raise ConfigurationError("A controller has one loader, and it was made already.")
        ranks = Ranks.of(self.model)
        loader = ranks.share(loader)
        batch_size, self._dataset_size = loader_sizes(loader)
        checks.check_loader_size(batch_size, ranks.world_size, self.base_batch_size)
        if self._accumulator_of is None:
            warn_of_smaller_parts(self.model, self.config.limits, batch_size)
        self._memory = self._make_memory(ranks)
        self._accumulator = self._make_accumulator(ranks)
        self._accumulator.ranks, self._accumulator.schedules = ranks, self._watch_schedules(ranks)
        self._plain_steps = PlainSteps(
            SampleCount(self.base_batch_size, self._dataset_size, bool(loader.drop_last))
        )
        training = torch_parts(self.model, self.optimizer, scaler=self._scaler, ranks=ranks)
        self._rate = training.rate
        self._adapter = LoopAdapter(
            training,
            batch_size=self.base_batch_size,
            dataset_size=self._dataset_size,
            policy=self.policy,
            policy_name=self._policy_name,
            config=sizes_for_model(
                self.config, self.model, self.base_batch_size, self._dataset_size, ranks.world_size
            ),
            ranks=ranks,
        )
        self._loader = ControlledLoader(
            loader,
            self,
            batch_size=self.base_batch_size,
            micro_batch_size=self._memory.limit if self.config.limits.divisible else None,
            ranks=ranks,
        )
        self._adapter.loader = self._loader
        self._user.attach(training.weights)
        self._apply_loaded_state()
        return self._loader

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
        return self._user.schedule(scheduler, lambda: steps * self._plain_steps.total)

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

    def backward(self, loss: Tensor, weight: float | Tensor | None = None) -> None:
        """Run the backward pass of the micro-batch's mean loss, with its weight in the batch.

        With weights w and the gradients g of the parts (of all ranks), the step's gradient is
        sum(w g) / sum(w), before anything clips it.

        Args:
            loss: A mean.
            weight: What it is the mean of, where that is not the samples: the number of tokens, the
                sum of class weights. Give it in every call. Where it is 0, the part adds nothing.
                It is read only if the batch is divided, or has several ranks.

        Raises:
            DeliveryError: There is no micro-batch to which the loss could belong, or the gradients
                of the parts before it were touched.
        """
        memory = self._memory
        if memory is not None and self._finds_limit and not memory.active:
            raise DeliveryError(
                "micro_batch_size='auto' needs forward and backward pass in the block of `with "
                "controller.within_memory():`."
            )
        accumulator = self._accumulator
        accumulator.backward(loss, weight)
        if self._averages(self._run.ranks) and accumulator.batch_complete:
            if not self._settle():
                return
            accumulator.correct()
        if accumulator.is_weighted:
            self._run.leave_unmeasured()
            loss = accumulator.told(loss)
        self._run.after_backward(loss)

    @contextmanager
    def within_memory(self) -> Generator[None]:
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
        memory, delivered = self._memory, self._accumulator.delivered
        if memory is None or delivered is None:
            raise DeliveryError("within_memory() belongs to one batch of the controller's loader.")
        if self._run.ranks.world_size > 1 and not self._finds_limit:
            raise ConfigurationError(
                "With several ranks within_memory() needs micro_batch_size='auto', by which they "
                "know before the pass not to wait for each other in it."
            )
        with memory.watch(delivered.micro_size):
            yield
        if memory.has_failed:
            self._settle()

    @property
    def delivered(self) -> Delivered | None:
        """The micro-batch in the hands of the loop, as it was planned; None between two."""
        return self._accumulator.delivered

    @property
    def batch_complete(self) -> bool:
        """Whether the gradient of the whole batch is there, so that `step` will step."""
        return self._accumulator.batch_complete

    def unscale_(self) -> None:
        """Divide the GradScaler's factor out of the gradients, for clipping them yourself."""
        self._accumulator.unscale_()

    def step(self, clip_norm: float | None = None) -> int:
        """Step the optimizer and zero the gradients, if the batch is complete.

        Args:
            clip_norm: Clip the gradient to this norm before.

        Returns:
            The samples of the step, or 0 when there was none yet.

        Raises:
            DeliveryError: The micro-batch had no backward pass.
        """
        if self._repeating:
            self._repeating = False
            return 0
        checks.require_owner(self.model, self)
        delivered = self._accumulator.step(self._rate.applied(), clip_norm)
        if delivered is None:
            return 0
        if self._finds_limit:
            if not self._averages(self._run.ranks):
                self._guard.settle()
            self._require_loader().sampler.set_micro_batch_size(self._guard.limit)
        samples, position = delivered.step_samples, delivered.step_end
        self._run.end_step(samples, epoch=delivered.epoch, position=position)
        return StepSamples.of(samples, self.base_batch_size, self._plain_steps.advance(position))

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
        delivered = self._accumulator.skip()
        self._repeating = False
        self._run.abandon_step()
        self._plain_steps.leave_out(delivered.step_samples, delivered.step_end)
        self._require_loader().skip_step()

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it."""
        self._run.report_validation(loss)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Stop the wall clock within the block, for a validation in the middle of an epoch."""
        with self._run.paused():
            yield

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._run.disable(reason)

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self.base_batch_size if self._adapter is None else self._adapter.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 0 if self._adapter is None else self._adapter.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far, over all ranks."""
        return 0 if self._adapter is None else self._adapter.samples_seen

    @property
    def plain_steps(self) -> int:
        """Steps that the plain loop would have made with as many samples: what schedules go by."""
        return self._plain_steps.total

    @property
    def components(self) -> dict[str, Any]:
        """What the controller is doing now, by part."""
        return self._run.components

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last optimizer step, torch's global generators included.

        A batch that the loop has in its hands comes again in the resumed run, and so do those that
        workers have prefetched, in the sizes they have. `torch.load` reads the state with
        `weights_only=True`.
        """
        return {
            **self._run.state_dict(),
            "memory": None if self._memory is None else self._memory.state_dict(),
            "plain_steps": self._plain_steps.state_dict(),
            "schedules": self._user.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, before or after `loader` is called.

        Load model and optimizer first. The log is continued behind the decisions that the state
        knows of; later ones, of steps that are now lost, are dropped.

        Raises:
            ConfigurationError: The state is of another version, batch size or policy, or damaged.
                Nothing of it was taken then: the controller is what it was.
        """
        check_state(state, self.base_batch_size)
        with all_or_nothing(self):
            self._state = state
            if self._loader is not None:
                self._apply_state(state)

    def close(self) -> None:
        """Note the end of the run in the log and close it."""
        self._accumulator.close()
        checks.release(self.model, self)
        if self._adapter is not None:
            self._adapter.close()

    def begin_epoch(self) -> None:
        """An iteration over the loader begins."""
        checks.take_over(self.model, self)
        sampler = self._require_loader().sampler
        self._plain_steps.begin_epoch(sampler.epoch_size, continues=sampler.resumes_within_epoch)
        self._run.begin_epoch()
        self._accumulator.abandon()
        self._repeating = False

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to the loop."""
        checks.require_owner(self.model, self)
        self._accumulator.arrive(delivered)
        if delivered.position == 0:
            self._begin_step(delivered)

    def end_epoch(self) -> None:
        """The loader has nothing more."""
        self._run.end_epoch()
        self._plain_steps.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration, at its end or before."""
        self._accumulator.leave()

    def _make_accumulator(self, ranks: Ranks) -> GradientAccumulator:
        if self._accumulator_of is not None:
            return self._accumulator_of(ranks)
        return GradientAccumulator(
            self.model,
            self.optimizer,
            self._scaler,
            ranks.world_size,
            synchronises=not self._averages(ranks),
        )

    def _watch_schedules(self, ranks: Ranks) -> ScheduleWatch | None:
        limits, share = self.config.limits, self.base_batch_size // ranks.world_size
        limit = limits.micro_batch_size
        divides = limits.divisible and isinstance(limit, int) and limit < share
        stays = keeps_size(self._policy_name, self.config)
        self._accumulator.changes = not stays
        return None if stays and not divides else ScheduleWatch(self.optimizer, self._dataset_size)

    @property
    def _finds_limit(self) -> bool:
        return self.config.limits.micro_batch_size == "auto"

    def _averages(self, ranks: Ranks) -> bool:
        """Whether gradients are averaged here, once all ranks have theirs."""
        return self._finds_limit and ranks.world_size > 1 and not ranks.sharded

    def _make_memory(self, ranks: Ranks) -> MemoryGuard:
        limit = self.config.limits.micro_batch_size
        if limit == "auto":  # the user's own size is known to fit
            limit = -(-self.base_batch_size // ranks.world_size)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        gauge = make_gauge(device, self.config.limits.memory_limit)
        return MemoryGuard(gauge, limit, adapts=self._finds_limit, ranks=ranks)

    def _settle(self) -> bool:
        """Return whether all ranks have their gradients, now averaged; or else begin again."""
        memory, run, loader = self._guard, self._run, self._require_loader()
        failed = memory.settle()
        if not failed:
            memory.average_gradients(self.model)
            return True
        reason = f"out of memory with micro-batches of {failed}; going on with {memory.limit}"
        warnings.warn(f"rlbatch: {reason}", RuntimeWarning, stacklevel=4)
        run.note_memory(reason)
        run.abandon_step()
        self._accumulator.abandon()
        loader.repeat_step(memory.limit)
        self._repeating = True
        return False

    def _begin_step(self, delivered: Delivered) -> None:
        samples, count = delivered.step_samples, delivered.micro_batches
        sizes = (samples,)
        if count > 1:
            sizes = micro_batch_totals(samples, count, self._run.ranks.world_size)
        self._run.begin_step(delivered.batch_size, sizes)

    def _apply_loaded_state(self) -> None:
        if self._state is not None:
            state, self._state = self._state, None
            with all_or_nothing(self):  # a state that is refused is not tried again
                self._apply_state(state)
                self._state = state

    def _apply_state(self, state: Mapping[str, Any]) -> None:
        require_like(
            {**state, "control_loop": None},
            {**self.state_dict(), "control_loop": None},
            "the controller's state",
        )
        if self._finds_limit and state.get("memory") is not None:
            self._guard.load_state_dict(state["memory"])
            self._require_loader().sampler.set_micro_batch_size(self._guard.limit)
        self._plain_steps.load_state_dict(state["plain_steps"])
        self._user.load_state_dict(state["schedules"])
        self._run.load_state_dict(state)

    @cached_property
    def _run(self) -> LoopAdapter:
        if self._adapter is None:
            raise ConfigurationError(_NO_LOADER)
        return self._adapter

    @property
    def _guard(self) -> MemoryGuard:
        if self._memory is None:
            raise ConfigurationError(_NO_LOADER)
        return self._memory

    def _require_loader(self) -> ControlledLoader:
        if self._loader is None:
            raise ConfigurationError(_NO_LOADER)
        return self._loader
