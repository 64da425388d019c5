"""One run of a controlled `Trainer`: its loader, its controller, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from rlbatch.control.config import ControllerConfig
from rlbatch.control.ranks import Ranks
from rlbatch.control.users_parts import in_users_parts
from rlbatch.data.delivery import Delivered
from rlbatch.data.step_plan import micro_batch_totals
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations._torch_loop import TorchLoop
from rlbatch.integrations._transformers_data import Step, TrainData
from rlbatch.integrations._transformers_plan import PlainPlan
from rlbatch.integrations._transformers_state import SavedRun
from rlbatch.integrations._transformers_watch import RunWatch
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy


class TrainRun:
    """What `Trainer.train` needs to know of the controller in one call.

    Attributes:
        loader: Given to the Trainer.
        plan: The plain run.
        step: The optimizer step under way, or the latest.
        shares: Of its micro-batches in the gradient.
        counts: What their means are taken to be over.
        latest_samples: Of the latest optimizer step.
        steps_before: Steps of the plain run before the latest optimizer step.
        steps_done: After it.
        watch: Notices what would change the run, once it has begun.
        step_is_open: The optimizer has yet to step on it.
        left_out: It is going to step with nothing.
        epoch_is_over: The Trainer's loop was told to stop: the loader has nothing more.
        loss_scaled: Whether the loss is divided by `num_items_in_batch`; None: not known yet.
    """

    def __init__(self, trainer: Any, prepared: Any, checkpoint: str | None) -> None:
        """Prepare a run.

        Args:
            trainer: Whose it is.
            prepared: Its own loader.
            checkpoint: Folder to go on from; None to start anew.

        Raises:
            ConfigurationError: The loader or the checkpoint cannot be gone on from.
        """
        self._saved: SavedRun | None = None
        self._refused: ConfigurationError | None = None  # on this process; others wait for it
        if checkpoint is not None:
            self._read(checkpoint, trainer.args)
        self.plan = PlainPlan(trainer, prepared, self._saved)
        self.loader = TrainData(prepared)
        self.loader.is_over = self._saved is not None and self._saved.ends_epoch
        self.steps_before = self.steps_done = 0
        self.loss_scaled: bool | None = None if self._saved is None else self._saved.loss_scaled
        self.step: Step | None = None
        self.shares: list[float] = []
        self.counts: list[float] = []
        self.latest_samples, self.left_out = 0, False
        self._weighed: list[Any] = []  # samples that each part's loss counts as
        self._loop: TorchLoop | None = None
        self.watch: RunWatch | None = None
        self._optimizer: Any = None
        self._arrived: Delivered | None = None
        self.step_is_open = self.epoch_is_over = self._in_epoch = False

    def _read(self, checkpoint: str, args: Any) -> None:
        try:
            self._saved = SavedRun.read(checkpoint, args.process_index, args.world_size)
        except ConfigurationError as error:
            if args.world_size == 1:
                raise
            self._refused = error

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides, once the optimizer is there."""
        return None if self._loop is None else self._loop.adapter

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self._require_loop().adapter.ranks

    @property
    def is_shared(self) -> bool:
        """Whether the step under way has several parts, on this process or on several."""
        return len(self.shares) > 1 or self.plan.world_size > 1

    @property
    def resumes_in(self) -> int:
        """The epoch that the run begins in."""
        return 0 if self._saved is None else self._saved.epoch

    def save(self, checkpoint: str) -> None:
        """Write what a resumed run reads."""
        if self.controller is None:
            return
        kept = self.loss_scaled, self.plan.world_size, self._in_epoch
        SavedRun(self.controller.state_dict(), *kept).write(checkpoint, self.plan.rank)

    def start(self, trainer: Any, policy: Policy | str, config: ControllerConfig) -> None:
        """Make the controller, now that the Trainer has its optimizer."""
        plan = self.plan
        config = in_users_parts(
            config, trainer.model, plan.micro_batch_size, accumulates=plan.accumulates
        )
        self._optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        model = trainer.model if plan.world_size == 1 else trainer.model_wrapped
        self._loop = loop = TorchLoop(
            self,
            getattr(model, "_orig_mod", model),
            self._optimizer,
            plan.loader,
            batch_size=plan.batch_size,
            policy=policy,
            config=config,
            epochs=plan.count.epochs(plan.total_steps),
            scaler=trainer.accelerator.scaler,
        )
        self.watch = RunWatch(model, self._optimizer, loop.changes)
        self.loader.elastic = loop.loader
        with loop.ranks.refuse_together():
            if self._refused is not None:
                raise self._refused
        if self._saved is not None:
            loop.adapter.load_state_dict(self._saved.controller)
            self.steps_done = plan.count.steps(*loop.place)
            self._limit(*loop.place)
        loop.attach()

    def stop(self) -> None:
        """Close the log and leave the optimizer as it was."""
        self.leave()
        if self._loop is not None:
            self._loop.close()

    # -- what the loader tells --

    def begin_epoch(self) -> None:
        """An iteration over the loader begins; what is left of a step under way is dropped."""
        if self.step_is_open:
            self.step_is_open = False
            self._optimizer.zero_grad()
        self._require_loop().begin_epoch()
        if self.watch is not None:
            self.watch.begin()

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to `next_step`."""
        self._arrived = delivered

    def end_epoch(self) -> None:
        """The loader has nothing more."""
        self._require_loop().adapter.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration."""
        if self.watch is not None:
            self.watch.rest()

    # -- a step --

    def due(self) -> int:
        """Return the steps of the plain run that are complete with the step under way."""
        if self.step is None:
            return self.steps_done
        first = self.step.plans[0]
        return self.plan.count.steps(first.epoch, first.step_end)

    def passed(self, every: float) -> bool:
        """Whether the latest optimizer step went past a multiple of `every` plain steps."""
        return self.steps_done // every > self.steps_before // every

    def next_step(self, batches: Iterator[Any]) -> Step | None:
        """Return the next optimizer step's micro-batches; None when epoch or run are over.

        Raises:
            DeliveryError: The epoch ended within a step, or the one before was not ended.
        """
        self.step, self._in_epoch = None, True
        if self.loader.is_over:
            self._require_loop().loader.restore_random_state()  # an evaluation draws from it
        elif self.steps_done < self.plan.total_steps:
            self.step = self._gather(batches)
        return self.step

    def _gather(self, batches: Iterator[Any]) -> Step | None:
        step = Step([], [])
        for batch in batches:
            if self.step_is_open:  # and no new iteration has begun with this batch
                raise DeliveryError(
                    "The optimizer has not stepped on the batch before. Leave the loop's own "
                    "settings of gradient accumulation as they are while it runs."
                )
            delivered, self._arrived = self._arrived, None
            if delivered is None:
                break
            step.batches.append(batch)
            step.plans.append(delivered)
            if delivered.is_last:
                self.step_is_open = True
                return step
        if step.batches:
            raise DeliveryError(
                f"Expected {step.plans[0].micro_batches} micro-batches of an optimizer step, got "
                f"{len(step.batches)}. Iterate over the loader that the controller made, alone."
            )
        return None

    def begin_step(self, step: Step, shares: list[float], counts: list[float]) -> None:
        """Announce an optimizer step.

        Args:
            step: From `next_step`.
            shares: Of each micro-batch in the gradient, so that they are 1 on average over the
                processes.
            counts: What each one's mean is taken to be over.
        """
        first, self.shares, self.counts = step.plans[0], shares, counts
        self.left_out, world_size = False, self.plan.world_size
        totals = micro_batch_totals(first.step_samples, first.micro_batches, world_size)
        self._weighed = list(totals)
        if world_size == 1:
            weighed = [share * first.step_samples for share in shares]
            self._weighed = self._weighed if min(weighed) < 1 else weighed
        self._require_loop().begin_step(first, self._weighed)

    def after_backward(self, loss: Tensor, index: int) -> None:
        """Take a micro-batch's loss, times its share, after its backward pass."""
        step = self.step
        samples = self._weighed[index] if step is None else step.plans[0].step_samples
        factor = samples / self._weighed[index]
        self._require_loop().adapter.after_backward(loss if factor == 1.0 else loss * factor)

    def batch(self, index: int) -> Any:
        """Return a micro-batch of the optimizer step under way."""
        if self.step is None:
            raise ConfigurationError("There is no optimizer step under way.")
        return self.step.batches[index]

    def part(self, index: int) -> Delivered:
        """Return how a micro-batch of the optimizer step under way was planned."""
        if self.step is None:
            raise ConfigurationError("There is no optimizer step under way.")
        return self.step.plans[index]

    def end_step(self) -> float:
        """Count the step that was made and return the epochs done."""
        if self.step is None:
            raise ConfigurationError("An optimizer step ended that the controller did not begin.")
        first, self.step_is_open = self.step.plans[0], False
        if self.left_out:
            self._require_loop().adapter.abandon_step()
        self._require_loop().end_step(first)
        self.latest_samples = first.step_samples
        self.steps_before, self.steps_done = self.steps_done, self.due()
        self._limit(first.epoch, first.step_end)
        return self.plan.epochs_after(first)

    def leave_epoch(self, control: Any) -> None:
        """The Trainer has left its loop over an epoch: take back that it is to stop."""
        self._in_epoch = False
        if self.epoch_is_over:
            self.epoch_is_over = control.should_epoch_stop = False
        if self.loader.is_over:  # the Trainer has missed its batches
            self.loader.is_over = False
            control.should_training_stop = self.steps_done >= self.plan.total_steps

    def steps_left(self) -> int:
        """Return the optimizer steps to come if the batch size stays."""
        left = max(self.plan.total_steps - self.steps_done, 0) * self.plan.batch_size
        size = self.plan.batch_size if self.controller is None else self.controller.batch_size
        return -(-left // size)

    def _limit(self, epoch: int, position: int) -> None:
        left = self.plan.samples_left(epoch, position)
        if left:
            self._require_loop().limit_next(left)

    def _require_loop(self) -> TorchLoop:
        if self._loop is None:
            raise ConfigurationError("There is no controller before the Trainer has an optimizer.")
        return self._loop
