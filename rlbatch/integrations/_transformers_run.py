"""One run of a controlled `Trainer`: its loader, its controller, and how far it has come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from rlbatch.control.config import ControllerConfig
from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations._shared import SampleCount, plain_loader
from rlbatch.integrations._torch_loop import TorchLoop
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

STATE_FILE = "rlbatch.pt"


class MicroBatches:
    """The micro-batches that take the place of one of the Trainer's accumulation steps."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def _refuse(self, *_: Any) -> NoReturn:
        raise ConfigurationError(
            "A method that is overridden above the controller gets several micro-batches at once. "
            "Put yours below it: class MyTrainer(ControlledTrainerMixin, MyPlainTrainer)."
        )

    __getitem__ = __contains__ = __iter__ = keys = items = get = pop = _refuse


def accumulation_slots(micro_batches: int, slots: int) -> list[MicroBatches]:
    """Distribute an optimizer step's micro-batches over the accumulation steps that a loop makes.

    Where there are fewer, the first slots stay empty: the step ends with a backward pass.
    """
    taken = [-(-micro_batches * index // slots) for index in range(slots + 1)]
    bounds = [micro_batches - count for count in reversed(taken)]
    return [MicroBatches(range(start, end)) for start, end in pairwise(bounds)]


class TrainData:
    """What the Trainer iterates over. The elastic loader is made later, with the optimizer.

    Attributes:
        dataset: As the Trainer's own loader.
        prepared: That loader.
        elastic: The one that takes its place.
    """

    def __init__(self, prepared: Any) -> None:
        """Stand in for a loader."""
        self.dataset, self.prepared = prepared.dataset, prepared
        self.elastic: Any = None

    def __iter__(self) -> Iterator[Any]:
        if self.elastic is None:
            raise ConfigurationError("The loader of a controlled run is there once it has begun.")
        return iter(self.elastic)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it."""
        if self.elastic is not None:
            self.elastic.set_epoch(epoch)


@dataclass(frozen=True)
class Step:
    """The micro-batches of one optimizer step, as they arrived.

    Attributes:
        batches: What the loader handed out.
        plans: What each of them was planned to be.
    """

    batches: list[Any]
    plans: list[Delivered]


class TrainRun:
    """What `Trainer.train` needs to know of the controller in one call.

    Attributes:
        loader: Given to the Trainer.
        count: Turns samples into steps of the user's batch size.
        micro_steps: Micro-batches of the plain run in an epoch.
        total_steps: Of the plain run.
        step: The optimizer step under way, or the latest.
        shares: Of its micro-batches in the loss.
        latest_samples: Of the latest optimizer step.
        steps_before: Steps of the plain run before the latest optimizer step.
        steps_done: After it.
        loss_scaled: Whether the loss is divided by `num_items_in_batch`; None: not known yet.
    """

    def __init__(self, prepared: Any, batch_size: int, accumulation_steps: int) -> None:
        """Prepare a run.

        Args:
            prepared: The Trainer's own loader.
            batch_size: The user's, of a micro-batch.
            accumulation_steps: The user's.
        """
        self.loader = TrainData(prepared)
        self.batch_size = batch_size * accumulation_steps
        self._plain = plain_loader(prepared, self.batch_size)
        sampler: Any = self._plain.sampler
        self.count = SampleCount(self.batch_size, len(sampler))
        self.micro_batch_size = batch_size
        self.micro_steps = -(-len(sampler) // batch_size)
        self.accumulation_steps = accumulation_steps
        self.total_steps = 0
        self.steps_before = self.steps_done = 0
        self.loss_scaled: bool | None = None
        self.step: Step | None = None
        self.shares: list[float] = []
        self.latest_samples = 0
        self._loop: TorchLoop | None = None
        self._optimizer: Any = None
        self._state: Mapping[str, Any] | None = None
        self._arrived: Delivered | None = None
        self._step_is_open = False

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides, once the optimizer is there."""
        return None if self._loop is None else self._loop.adapter

    def load(self, checkpoint: str) -> int:
        """Take up a checkpoint and return the epoch that it was saved in.

        Raises:
            ConfigurationError: No controlled run wrote it.
        """
        path = os.path.join(checkpoint, STATE_FILE)
        if not os.path.isfile(path):
            raise ConfigurationError(
                f"The checkpoint {checkpoint} has no {STATE_FILE}: it was saved without a "
                "controller, or with save_only_model=True. Resume it with the plain Trainer, or "
                "load its model and start a new run."
            )
        state = torch.load(path, weights_only=True)
        self._state = state["controller"]
        self.loss_scaled = state["loss_scaled"]
        place = state["controller"]["loader"]
        return place["epoch"] + place["complete"]

    def save(self, checkpoint: str) -> None:
        """Write what `load` reads."""
        if self.controller is None:
            return
        state = {"controller": self.controller.state_dict(), "loss_scaled": self.loss_scaled}
        torch.save(state, os.path.join(checkpoint, STATE_FILE))

    def start(self, trainer: Any, policy: Policy | str, config: ControllerConfig) -> None:
        """Make the controller, now that the Trainer has its optimizer."""
        if self.accumulation_steps > 1 and config.limits.known_micro_batch_size is None:
            config = config.in_parts_of(self.micro_batch_size)
        self._optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self._loop = loop = TorchLoop(
            self,
            trainer.model,
            self._optimizer,
            self._plain,
            batch_size=self.batch_size,
            policy=policy,
            config=config,
            epochs=self.count.epochs(self.total_steps),
            scaler=trainer.accelerator.scaler,
        )
        self.loader.elastic = loop.loader
        if self._state is not None:
            loop.adapter.load_state_dict(self._state)
            self.steps_done = self.count.steps(*loop.place)
            self._limit(*loop.place)
        loop.attach()

    def stop(self) -> None:
        """Close the log and leave the optimizer as it was."""
        if self._loop is not None:
            self._loop.close()

    # -- what the loader tells --

    def begin_epoch(self) -> None:
        """An iteration over the loader begins; what is left of a step under way is dropped."""
        if self._step_is_open:
            self._step_is_open = False
            self._optimizer.zero_grad()
        self._require_loop().begin_epoch()

    def arrive(self, delivered: Delivered) -> None:
        """A micro-batch is about to be handed to `next_step`."""
        self._arrived = delivered

    def end_epoch(self) -> None:
        """The loader has nothing more."""
        self._require_loop().adapter.end_epoch()

    def leave(self) -> None:
        """The loop has left the iteration."""

    # -- a step --

    def __len__(self) -> int:
        """Return the samples of an epoch."""
        return self.count.dataset_size

    def due(self) -> int:
        """Return the steps of the plain run that are complete with the step under way."""
        if self.step is None:
            return self.steps_done
        plan = self.step.plans[0]
        return self.count.steps(plan.epoch, plan.step_end)

    def passed(self, every: float) -> bool:
        """Whether the latest optimizer step went past a multiple of `every` plain steps."""
        return self.steps_done // every > self.steps_before // every

    def next_step(self, batches: Iterator[Any]) -> Step | None:
        """Return the next optimizer step's micro-batches; None when epoch or run are over.

        Raises:
            DeliveryError: The epoch ended within a step, or the one before was not ended.
        """
        self.step = None
        if self.steps_done < self.total_steps:
            self.step = self._gather(batches)
        return self.step

    def _gather(self, batches: Iterator[Any]) -> Step | None:
        step = Step([], [])
        for batch in batches:
            if self._step_is_open:  # and no new iteration has begun with this batch
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
                self._step_is_open = True
                return step
        if step.batches:
            raise DeliveryError(
                f"Expected {step.plans[0].micro_batches} micro-batches of an optimizer step, got "
                f"{len(step.batches)}. Iterate over the loader that the controller made, alone."
            )
        return None

    def begin_step(self, step: Step, weights: Sequence[float]) -> None:
        """Announce an optimizer step.

        Args:
            step: From `next_step`.
            weights: What share each micro-batch has in the gradient; of any scale.
        """
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        plan = step.plans[0]
        sizes: Any = [share * plan.step_samples for share in self.shares]
        self._require_loop().begin_step(plan, None if min(sizes) < 1 else sizes)

    def after_backward(self, loss: Tensor) -> None:
        """Take a micro-batch's mean loss, after its backward pass, before anything clips."""
        self._require_loop().adapter.after_backward(loss)

    def batch(self, index: int) -> Any:
        """Return a micro-batch of the optimizer step under way."""
        if self.step is None:
            raise ConfigurationError("There is no optimizer step under way.")
        return self.step.batches[index]

    def end_step(self) -> float:
        """Count the step that was made and return the epochs done."""
        if self.step is None:
            raise ConfigurationError("An optimizer step ended that the controller did not begin.")
        plan, self._step_is_open = self.step.plans[0], False
        self._require_loop().end_step(plan)
        self.latest_samples = plan.step_samples
        self.steps_before, self.steps_done = self.steps_done, self.due()
        self._limit(plan.epoch, plan.step_end)
        if plan.step_end >= len(self):
            return plan.epoch + 1.0
        return plan.epoch + plan.step_end / self.micro_batch_size / self.micro_steps

    def steps_left(self) -> int:
        """Return the optimizer steps to come if the batch size stays."""
        left = max(self.total_steps - self.steps_done, 0) * self.batch_size
        size = self.batch_size if self.controller is None else self.controller.batch_size
        return -(-left // size)

    def _limit(self, epoch: int, position: int) -> None:
        if position >= len(self):
            epoch, position = epoch + 1, 0
        left = self.count.limit(self.total_steps, epoch, position)
        if left is not None and left > 0:
            self._require_loop().limit_next(left)

    def _require_loop(self) -> TorchLoop:
        if self._loop is None:
            raise ConfigurationError("There is no controller before the Trainer has an optimizer.")
        return self._loop
