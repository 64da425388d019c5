"""A Hugging Face `Trainer` whose batch size a controller adapts while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlbatch.arguments import require_function
from rlbatch.control.config import ControllerConfig
from rlbatch.control.settings import make_config
from rlbatch.errors import ConfigurationError
from rlbatch.extras import needs_extra
from rlbatch.integrations._shared import SampleScheduler, follows_a_metric
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

with needs_extra("transformers", "transformers"):
    from transformers import Trainer
    from transformers.trainer_callback import DefaultFlowCallback

from rlbatch.integrations._transformers_checks import check_trainer, check_version
from rlbatch.integrations._transformers_data import MicroBatches, TrainData, accumulation_slots
from rlbatch.integrations._transformers_flow import SampleFlowCallback, StepCallback
from rlbatch.integrations._transformers_loss import WeightOf, on_this_process, part_shares
from rlbatch.integrations._transformers_pass import surroundings
from rlbatch.integrations._transformers_run import TrainRun
from rlbatch.integrations._transformers_scale import is_scaled
from rlbatch.integrations._transformers_skip import LeavesOut

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ControlledTrainerMixin(LeavesOut, _Base):
    """Makes a Trainer's batch size adaptive: `class Mine(ControlledTrainerMixin, MyTrainer)`.

    Loaders hand out whole optimizer steps, in micro-batches; `training_step` of the class below is
    called for each of them, as with gradient accumulation. Everything that counts optimizer steps
    in the arguments counts samples instead, in steps of the user's batch size
    (`per_device_train_batch_size * gradient_accumulation_steps`).

    Attributes:
        controller: What decides in the latest call of `train`; None before the first.
    """

    def __init__(
        self,
        *args: Any,
        policy: Policy | str = "default",
        config: ControllerConfig | None = None,
        controller: ControllerConfig | None = None,
        weight: WeightOf | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a Trainer.

        Args:
            *args: As the Trainer's.
            policy: A name (`default`, `fixed`, a policy file ...) or a policy.
            config: The controller's settings. With gradient accumulation, its
                `micro_batch_size` is `per_device_train_batch_size` unless it is given.
            controller: The older name of `config`.
            weight: From a batch, as `compute_loss` gets it, to what its loss is the mean of: the
                sum of class weights, a number of tokens. With weights w and the gradients g of the
                parts of a step, on all processes, its gradient is sum(w g) / sum(w). None: labels
                that count, or what `num_items_in_batch` makes of the loss.
            **kwargs: As the Trainer's.

        Raises:
            ConfigurationError: The Trainer's arguments cannot be kept to with changing sizes.
        """
        check_version(type(self))
        self._run: TrainRun | None = None
        if config is not None and controller is not None:
            raise ConfigurationError("Give the settings once, as config, not as controller too.")
        given = controller if config is None else config
        self._policy, self._config = policy, make_config(given, {})
        _ = self._config.limits.known_micro_batch_size  # refuses what no Trainer could follow
        require_function("weight", weight, "a function of a batch")
        self.weight = weight
        self._checkpoint: str | None = None
        super().__init__(*args, **kwargs)
        check_trainer(self)
        callbacks = self.callback_handler.callbacks
        callbacks.insert(0, StepCallback(self, self._require_run))
        for place, callback in enumerate(callbacks):
            if type(callback) is DefaultFlowCallback:
                callbacks[place] = SampleFlowCallback(self._require_run)

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides in the latest call of `train`; None before the first."""
        return None if self._run is None else self._run.controller

    # -- what the Trainer asks for before it trains --

    def _inner_training_loop(
        self, *args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any
    ) -> Any:
        self._checkpoint = resume_from_checkpoint
        return super()._inner_training_loop(
            *args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
        )

    def get_train_dataloader(self) -> Any:
        """Return the loader: within `train` the controlled one, else the plain one."""
        prepared = super().get_train_dataloader()
        if not self.is_in_train:
            return prepared
        if self._run is not None:
            self._run.stop()
        self._run = TrainRun(self, prepared, self._checkpoint)
        return self._run.loader

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Return the plain run's numbers, but for bounds on the optimizer steps of an epoch."""
        if not isinstance(dataloader, TrainData):
            return super().set_initial_training_values(args, dataloader)
        values = super().set_initial_training_values(args, dataloader.prepared)
        epochs, _, examples, samples, batch_size, _, max_steps = values
        plan = self._require_run().plan
        if plan.keeps_size:
            batch_size, (epochs, max_steps) = plan.batch_size, plan.length(args)
        plan.total_steps = max_steps
        # No more steps than samples; and a number of micro-batches that is never reached, since
        # the Trainer would step the optimizer there.
        most, unreachable = plan.samples, (plan.samples + 1) * plan.accumulation_steps
        return epochs, most, examples, samples, batch_size, unreachable, max_steps

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the scheduler, stepped by samples unless it follows a metric."""
        scheduler = super().create_scheduler(*args, **kwargs)
        if isinstance(scheduler, SampleScheduler):
            scheduler = scheduler.scheduler
        if self._run is not None and not follows_a_metric(scheduler):
            scheduler = SampleScheduler(scheduler, self._run.due)
        self.lr_scheduler = scheduler
        return scheduler

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        # The loader itself goes on within an epoch: there are no batches to skip.
        return self._require_run().resumes_in, 0

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        self._require_run().start(self, self._policy, self._config)
        if isinstance(self.lr_scheduler, SampleScheduler):
            self.lr_scheduler.skip()
        return prepared

    # -- an optimizer step --

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Return the next optimizer step's micro-batches, in place of so many batches."""
        run, plan = self._require_run(), self._require_run().plan
        if self.args.gradient_accumulation_steps != plan.accumulation_steps:
            raise ConfigurationError(
                f"gradient_accumulation_steps was {plan.accumulation_steps} when the run began and "
                f"is {self.args.gradient_accumulation_steps} now. Leave it: the controller decides."
            )
        step = run.next_step(epoch_iterator)
        if step is None:
            self.control.should_epoch_stop = run.epoch_is_over = True
            if run.steps_done >= plan.total_steps:
                self.control.should_training_stop = True
            return [], None
        batches = step.batches
        _, items = super().get_batch_samples(iter(batches), len(batches), device)
        if items is not None and not self.args.average_tokens_across_devices:
            items = on_this_process(items, step.plans, plan.world_size)
        run.begin_step(step, *part_shares(self, batches, step.plans, run.ranks))
        if run.watch is not None:
            run.watch.look_at_rates(step.plans[0].epoch, self.lr_scheduler)
        return accumulation_slots(len(batches), plan.accumulation_steps), items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward passes of micro-batches, weighted by their share in the step."""
        if not isinstance(inputs, MicroBatches):
            return super().training_step(model, inputs, num_items_in_batch)
        run, users = self._require_run(), self.loss_is_scaled_for_ga
        total: Tensor | None = None
        try:
            if run.is_shared:
                self.loss_is_scaled_for_ga = is_scaled(self, model, run, num_items_in_batch)
            for index in inputs.indices:
                loss = self._micro_step(model, index, num_items_in_batch)
                total = loss if total is None else total + loss
                if index + 1 < inputs.indices.stop:
                    self.control = self.callback_handler.on_substep_end(
                        self.args, self.state, self.control
                    )
        finally:
            self.loss_is_scaled_for_ga = users
        return torch.zeros((), device=self.args.device) if total is None else total

    def _micro_step(self, model: Any, index: int, items: Any) -> Tensor:
        run = self._require_run()
        share = run.shares[index]
        # The Trainer divides a mean loss by this.
        self.current_gradient_accumulation_steps: Any = 1.0 / share if share else 1.0
        with surroundings(self, model, run, index):
            loss = super().training_step(model, run.batch(index), items)
        if not share:
            loss = torch.zeros_like(loss)
        run.after_backward(loss, index)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Add up the operations of micro-batches."""
        if not isinstance(inputs, MicroBatches):
            return super().floating_point_ops(inputs)
        batch = self._require_run().batch
        return sum(
            super(ControlledTrainerMixin, self).floating_point_ops(batch(i)) for i in inputs.indices
        )

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if not isinstance(inputs, MicroBatches):
            return super()._track_num_input_tokens(inputs)
        for index in inputs.indices:
            super()._track_num_input_tokens(self._require_run().batch(index))

    # -- beside the steps --

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, off the controller's clock."""
        with self._off_the_clock():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the batch size of the latest optimizer step beside its loss."""
        if self._run is not None and "loss" in logs:
            logs["batch_size"] = self._run.latest_samples
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._off_the_clock():
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._run is not None:
            self._run.save(output_dir)
            # A checkpoint counts with the Trainer's state, which comes last: all are written then.
            self.accelerator.wait_for_everyone()

    def _off_the_clock(self) -> AbstractContextManager[Any]:
        controller = self.controller if self.is_in_train else None
        return nullcontext() if controller is None else controller.paused()

    def _require_run(self) -> TrainRun:
        if self._run is None:
            raise ConfigurationError("There is no controlled run before train() is called.")
        return self._run


class ControlledTrainer(ControlledTrainerMixin, Trainer):
    """A `Trainer` whose batch size a controller adapts.

        trainer = ControlledTrainer(model, args, train_dataset=data, policy="default")
        trainer.train()

    See `ControlledTrainerMixin` for the further arguments, and for other Trainers.
    """
