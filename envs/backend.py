"""What a live run trains: the weights, and the steps that change them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.control.snapshot import Snapshot
from rlbatch.envs.task import Task, collate_samples
from rlbatch.envs.validator import Validator
from rlbatch.signals.monitor import ChunkMeasurement, ChunkMonitor

AppliedRate = Callable[[], AbstractContextManager[float]]


class TrainingBackend(Protocol):
    """Weights in training.

    Attributes:
        optimizer: Holds the learning rate; schedules and couplings change it there.
    """

    optimizer: Optimizer

    def chunk(self) -> AbstractContextManager[None]:
        """Return a block within which the steps of a chunk run."""
        ...

    def step(self, indices: Sequence[int], measured: bool, applied: AppliedRate) -> None:
        """Take one optimizer step.

        Args:
            indices: Samples of the batch.
            measured: Measure the gradient noise.
            applied: Returns a block within which the optimizer has its coupled learning rate.
        """
        ...

    def finish(self) -> ChunkMeasurement:
        """Return what the steps since the last call showed."""
        ...

    def remember(self) -> None:
        """Keep a copy of what a step changes."""
        ...

    def restore(self) -> None:
        """Go back to the copy."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Return a block whose steps are undone at its end, random numbers included.

        It takes the place of `chunk`. The copy of `remember` is lost.
        """
        ...

    def validation_loss(self) -> float:
        """Return the mean loss over the validation set."""
        ...


class TorchBackend:
    """Any task, by PyTorch.

    Attributes:
        model: The network.
        optimizer: Its optimizer.
    """

    def __init__(self, task: Task, seed: int, learning_rate_scale: float = 1.0) -> None:
        """Build the model and everything else that the seed determines.

        Args:
            task: What is trained.
            seed: Of the weights and of the random numbers within the model.
            learning_rate_scale: Multiplies the task's learning rate.
        """
        self._task = task
        self.model, self.optimizer, self._rng = build(task, seed, learning_rate_scale)
        self._monitor = ChunkMonitor(self.model.parameters(), self.optimizer, model=self.model)
        self._snapshot = Snapshot(self.model, self.optimizer)
        self._validator = Validator(task)

    @contextmanager
    def chunk(self) -> Generator[None]:
        """Random numbers in the model are the run's own."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            yield
            self._rng = torch.get_rng_state()

    def step(self, indices: Sequence[int], measured: bool, applied: AppliedRate) -> None:
        """As `TrainingBackend.step`."""
        task, monitor = self._task, self._monitor
        monitor.begin_step([len(indices)], measured=measured)
        batch = collate_samples(task.train_set, indices, task.collate)
        loss: Any = task.loss(self.model, batch)
        loss.backward()
        monitor.after_backward(loss)
        with applied():
            self.optimizer.step()
        self.optimizer.zero_grad()

    def finish(self) -> ChunkMeasurement:
        """As `TrainingBackend.finish`."""
        return self._monitor.finish()

    def remember(self) -> None:
        """As `TrainingBackend.remember`."""
        self._snapshot.take()

    def restore(self) -> None:
        """As `TrainingBackend.restore`."""
        self._snapshot.restore()

    @contextmanager
    def aside(self) -> Generator[None]:
        """As `TrainingBackend.aside`."""
        self.remember()
        before = self._rng
        with self.chunk():
            yield
        self._rng = before
        self.restore()

    def validation_loss(self) -> float:
        """As `TrainingBackend.validation_loss`."""
        return self._validator.loss(self.model)


def build(task: Task, seed: int, learning_rate_scale: float) -> tuple[nn.Module, Optimizer, Tensor]:
    """Return a fresh model in train mode, its optimizer and the state of torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model()
        rng = torch.get_rng_state()
    model.train()
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * learning_rate_scale
        group["initial_lr"] = group["lr"]  # as schedulers note it, too
    return model, optimizer, rng


BackendMaker = Callable[[Task, int, float], TrainingBackend]
"""Makes the weights of a run from its task, its seed and the scale of its learning rate."""
