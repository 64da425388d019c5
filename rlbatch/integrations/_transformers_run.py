"""One run of a controlled `Trainer`: its loader, its controller, and how far it has come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NoReturn

import torch

from rlbatch.control.config import ControllerConfig
from rlbatch.control.loader import ControlledLoader
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._shared import SampleCount, Window, WindowController, plain_loader
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


class TrainLoader:
    """What the Trainer iterates over. The controlled loader is made later, with the optimizer.

    Attributes:
        dataset: As the Trainer's own loader.
        prepared: That loader.
        controlled: The one that takes its place.
    """

    def __init__(self, prepared: Any) -> None:
        """Stand in for a loader."""
        self.dataset, self.prepared = prepared.dataset, prepared
        self.controlled: ControlledLoader | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.controlled is None:
            raise ConfigurationError("The loader of a controlled run is there once it has begun.")
        return iter(self.controlled)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it."""
        if self.controlled is not None:
            self.controlled.set_epoch(epoch)


class ControlledRun:
    """What `Trainer.train` needs to know of the controller in one call.

    Attributes:
        loader: Given to the Trainer.
        count: Turns samples into steps of the user's batch size.
        micro_steps: Micro-batches of the plain run in an epoch.
        total_steps: Of the plain run.
        controller: Once the optimizer is there.
        window: The optimizer step under way.
        shares: Of its micro-batches in the loss.
        latest_samples: Of the latest optimizer step.
        steps_before: Steps of the plain run before the latest optimizer step.
        steps_done: Behind it.
        loss_scaled: Whether the loss is divided by `num_items_in_batch`; None: not known yet.
    """

    def __init__(self, prepared: Any, batch_size: int, accumulation_steps: int) -> None:
        """Prepare a run.

        Args:
            prepared: The Trainer's own loader.
            batch_size: The user's, of a micro-batch.
            accumulation_steps: The user's.
        """
        self.loader = TrainLoader(prepared)
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
        self.window: Window | None = None
        self.shares: list[float] = []
        self.latest_samples = 0
        self.controller: WindowController | None = None
        self._state: Mapping[str, Any] | None = None

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

    def start(
        self, trainer: Any, policy: Policy | str, config: ControllerConfig
    ) -> WindowController:
        """Make the controller, now that the Trainer has its optimizer."""
        optimizer = trainer.optimizer
        config = config.lasting(self.count.epochs(self.total_steps))
        controller = WindowController(
            trainer.model,
            getattr(optimizer, "optimizer", optimizer),
            batch_size=self.batch_size,
            policy=policy,
            config=config,
            scaler=trainer.accelerator.scaler,
        )
        self.controller = controller
        self.loader.controlled = controller.loader(self._plain)
        if self._state is not None:
            controller.load_state_dict(self._state)
            sampler = self.loader.controlled.sampler
            self.steps_done = self.count.steps(sampler.epoch, sampler.position)
            self._limit(sampler.epoch, sampler.position)
        controller.attach()
        return controller

    def __len__(self) -> int:
        """Return the samples of an epoch."""
        return self.count.dataset_size

    def due(self) -> int:
        """Return the steps of the plain run that are complete with the window under way."""
        window = self.window
        if window is None:
            return self.steps_done
        return self.count.steps(window.plans[0].epoch, window.position)

    def passed(self, every: float) -> bool:
        """Whether the latest optimizer step went past a multiple of `every` plain steps."""
        return self.steps_done // every > self.steps_before // every

    def next_step(self, batches: Iterator[Any]) -> Window | None:
        """Return the next optimizer step's micro-batches; None when epoch or run are over."""
        self.window = None
        if self.controller is not None and self.steps_done < self.total_steps:
            self.window = self.controller.next_step(batches)
        return self.window

    def batch(self, index: int) -> Any:
        """Return a micro-batch of the optimizer step under way."""
        if self.window is None:
            raise ConfigurationError("There is no optimizer step under way.")
        return self.window.batches[index]

    def end_step(self) -> float:
        """Count the step that was made and return the epochs done."""
        window, controller = self.window, self.controller
        if window is None or controller is None:
            raise ConfigurationError("An optimizer step ended that the controller did not begin.")
        controller.end_step(window)
        self.latest_samples = window.plans[0].step_samples
        epoch, position = window.plans[0].epoch, window.position
        self.steps_before, self.steps_done = self.steps_done, self.due()
        self._limit(epoch, position)
        if position >= len(self):
            return epoch + 1.0
        return epoch + position / self.micro_batch_size / self.micro_steps

    def steps_left(self) -> int:
        """Return the optimizer steps to come if the batch size stays."""
        left = max(self.total_steps - self.steps_done, 0) * self.batch_size
        size = self.batch_size if self.controller is None else self.controller.batch_size
        return -(-left // size)

    def _limit(self, epoch: int, position: int) -> None:
        if position >= len(self):
            epoch, position = epoch + 1, 0
        left = self.count.limit(self.total_steps, epoch, position)
        if left is not None and left > 0 and self.controller is not None:
            self.controller.limit_next(left)
