"""A controller for plain loops on Hugging Face Accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlbatch.arguments import require_kind
from rlbatch.control.checks import check_model
from rlbatch.control.config import ControllerConfig
from rlbatch.control.limits import require_samples
from rlbatch.control.ranks import Ranks
from rlbatch.control.saved_state import check_state
from rlbatch.control.settings import Settings, make_config
from rlbatch.control.users_parts import in_users_parts
from rlbatch.controller import BatchController
from rlbatch.data.loader import check_is_loader
from rlbatch.data.run_schedule import RunSchedule
from rlbatch.data.sample_schedule import require_steps
from rlbatch.errors import ConfigurationError
from rlbatch.extras import needs_extra
from rlbatch.integrations._accelerate_state import OwnState
from rlbatch.integrations._shared import SampleScheduler, plain_loader
from rlbatch.policy.base import Policy

with needs_extra("transformers", "accelerate"):
    from accelerate import Accelerator
    from accelerate.scheduler import AcceleratedScheduler
    from accelerate.utils import DistributedType

    from rlbatch.integrations._accelerate_steps import AcceleratedAccumulator, DeviceLoader


class AcceleratedController:
    """Decides, every few steps, how many samples the next optimizer steps take.

        accelerator = Accelerator()
        model, optimizer, loader, scheduler = accelerator.prepare(
            model, optimizer, loader, scheduler
        )
        controller = AcceleratedController(
            accelerator, model, optimizer, batch_size=32, scheduler=scheduler
        )
        loader = controller.loader(loader)
        for epoch in range(epochs):
            for batch in loader:
                controller.backward(loss_fn(model, batch))  # instead of accelerator.backward(loss)
                controller.step()  # instead of those of optimizer and scheduler, and zero_grad()

    It has everything that a `rlbatch.BatchController` has. `accelerator.sync_gradients` tells when
    the optimizer is going to step, also within `with accelerator.accumulate(model)`, which may
    stay. Save and load it with the rest: `accelerator.register_for_checkpointing(controller)`.

    Attributes:
        controller: The `BatchController` that decides.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        *,
        batch_size: int,
        scheduler: Any = None,
        policy: Policy | str = "default",
        config: ControllerConfig | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Prepare a run; nothing happens before `loader` is called.

        Args:
            accelerator: That of the loop.
            model: What is trained, prepared.
            optimizer: Its optimizer, prepared.
            batch_size: The user's, for which the learning rate was chosen: the loader's times the
                accelerator's `gradient_accumulation_steps` times its `num_processes`. With more
                than one accumulation step, the loader's is the controller's `micro_batch_size`
                unless another is given.
            scheduler: A schedule by steps of that batch size, prepared or not, if there is one; it
                then goes by samples. Schedules by epochs or by a metric are stepped as always.
            policy: A name (`default`, `fixed`, a policy file ...) or a policy.
            config: The settings, or give them as further arguments.
            **settings: Fields of `ControllerConfig` and of its parts.

        Raises:
            ConfigurationError: Settings contradict themselves, or the processes share the training
                in another way than by DistributedDataParallel.
        """
        batch_size = require_samples("batch_size", batch_size)
        self._accelerator = accelerator
        _check(accelerator, model)
        steps = accelerator.gradient_accumulation_steps
        if batch_size % (steps * accelerator.num_processes):
            raise ConfigurationError(
                "batch_size is the loader's times gradient_accumulation_steps times the processes, "
                f"got {batch_size} with {steps} and {accelerator.num_processes} of these. Give the "
                "samples of an optimizer step on all of them."
            )
        config = make_config(config, settings)
        self._loader_batch_size = batch_size // steps // accelerator.num_processes
        config = in_users_parts(config, model, self._loader_batch_size, accumulates=steps > 1)
        self._own_state = OwnState(accelerator, self.state_dict)
        self._schedule_steps = self._steps_of(scheduler)
        self._schedule = _sample_schedule(scheduler, self._steps_due)
        model = model if accelerator.num_processes > 1 else accelerator.unwrap_model(model)
        self.controller = BatchController(
            model,
            getattr(optimizer, "optimizer", optimizer),
            batch_size=batch_size,
            policy=policy,
            config=config,
            scaler=accelerator.scaler,
            accumulator=lambda ranks: AcceleratedAccumulator(
                accelerator, model, optimizer, ranks.world_size
            ),
        )

    def __getattr__(self, name: str) -> Any:
        """Return what the `BatchController` has."""
        if name == "controller":  # asked for before it is made
            raise AttributeError(name)
        return getattr(self.controller, name)

    def loader(self, loader: Any) -> Any:
        """Return a loader like the given one, prepared or not, whose batch size is controlled.

        Batches come on the accelerator's device. It is not prepared again.

        Raises:
            ConfigurationError: The loader has another batch size than was said, or no sampler.
        """
        check_is_loader(loader)
        batch_size = getattr(loader.batch_sampler, "batch_size", None)
        Ranks.of(self.controller.model).require_same(batch_size=batch_size)
        if batch_size is not None and batch_size != self._loader_batch_size:
            raise ConfigurationError(
                f"The controller was made for a loader of batch size {self._loader_batch_size}, "
                f"and this one has {batch_size}. Give both the same one; batch_size is that times "
                "gradient_accumulation_steps times the processes."
            )
        world_size = self._accelerator.num_processes
        base_batch_size = self.controller.base_batch_size
        plain: DataLoader[Any] = plain_loader(loader, base_batch_size // world_size)
        controlled = self.controller.loader(plain)
        self._take_place()
        return DeviceLoader(controlled, self._accelerator, self.controller, loader)

    def backward(
        self,
        loss: Tensor,
        weight: float | Tensor | None = None,
        retain_graph: bool | None = None,
        **others: Any,
    ) -> None:
        """Run the backward pass of the micro-batch's mean loss, with its weight in the batch.

        Args:
            loss: A mean.
            weight: Of what, if not of the samples, as in `rlbatch.BatchController.backward`.
            retain_graph: As of `accelerator.backward`.
            **others: What else it takes, at its defaults.

        Raises:
            DeliveryError: There is no micro-batch to which the loss could belong, or the gradients
                of the parts before it were touched.
            ConfigurationError: One of the others is not at its default.
        """
        self.controller.backward(loss, weight, retain_graph, **others)

    def step(self, clip_norm: float | None = None) -> int:
        """Step optimizer and schedule and zero the gradients, if the batch is complete.

        Args:
            clip_norm: Clip the gradient to this norm before. To do it yourself, do it when
                `accelerator.sync_gradients`, with `accelerator.clip_grad_norm_`.

        Returns:
            The samples of the step, or 0 when there was none yet.

        Raises:
            DeliveryError: The micro-batch had no backward pass.
        """
        samples = self.controller.step(clip_norm)
        if samples and self._schedule is not None:
            if not self._accelerator.optimizer_step_was_skipped:  # for an overflow
                self._schedule.step()
            self._schedule.skip()
        return samples

    def skip(self) -> None:
        """Leave out a batch, in place of `backward` and `step`, with the optimizer step it is of.

        As in `rlbatch.BatchController.skip`. The schedule given to the controller makes no step for
        it.
        """
        self.controller.skip()

    def schedule(self, scheduler: Any) -> RunSchedule:
        """Let a schedule by steps go by samples, where the loop is to step it itself.

        As in `rlbatch.BatchController.schedule`; prepared or not. One that was prepared makes no
        step behind an optimizer step that was left out for an overflow. Give a schedule here or as
        `scheduler` at construction, not both.
        """
        if not isinstance(scheduler, AcceleratedScheduler):
            return self.controller.schedule(scheduler)
        taken = self.controller.schedule(scheduler.scheduler, self._steps_of(scheduler))
        taken.passes = lambda: self._accelerator.optimizer_step_was_skipped
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last optimizer step."""
        return self.controller.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` returned, before or after `loader` is called.

        Raises:
            ConfigurationError: It is of another run, or damaged. Nothing of it was taken then.
        """
        with self.controller.ranks.refuse_together():
            check_state(state, self.controller.base_batch_size)
            own = self._own_state.of_this_process(state)
        self.controller.load_state_dict(own)
        self._take_place()

    def _steps_of(self, scheduler: Any) -> int:
        # A prepared one makes a step for each process.
        prepared = isinstance(scheduler, AcceleratedScheduler) and not scheduler.split_batches
        return self._accelerator.num_processes if prepared else 1

    def _take_place(self) -> None:
        if self._schedule is not None:
            self._schedule.skip()

    def _steps_due(self) -> int:
        return self._schedule_steps * self.controller.steps_due


def _check(accelerator: Any, model: Any) -> None:
    require_kind("accelerator", accelerator, Accelerator, "Give that of the loop first.")
    check_model(model)
    alone, together = DistributedType.NO, (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in (alone, *together) and not accelerator.is_fsdp2:
        raise ConfigurationError(
            "Expected one process, or several with DistributedDataParallel or FSDP2, got "
            f"{accelerator.distributed_type}, whose steps have rules of their own. Launch without "
            "DeepSpeed, the older FSDP and the like."
        )
    if not accelerator.gradient_state.sync_with_dataloader:
        raise ConfigurationError(
            "Expected optimizer steps that end with the epoch, got sync_with_dataloader=False, by "
            "which parts of a step are carried into the next one. Leave it at True: a rest of "
            "samples makes a step of its own, weighted by samples."
        )


def _sample_schedule(scheduler: Any, due: Callable[[], int]) -> SampleScheduler | None:
    if isinstance(scheduler, AcceleratedScheduler):
        scheduler = scheduler.scheduler
    if scheduler is None:
        return None
    require_steps(scheduler)
    return SampleScheduler(scheduler, due)
