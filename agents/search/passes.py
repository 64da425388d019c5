"""One forward and backward pass of a task at a batch size: what it needs, and whether it fits."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlbatch.control.memory import MemoryGauge, is_out_of_memory, make_gauge
from rlbatch.envs.task import Task, collate_samples


class PassRunner:
    """Runs passes and optimizer steps of a task's fresh model on a device.

    Attributes:
        device: Where.
        model: The network.
        optimizer: Its optimizer.
    """

    def __init__(self, task: Task, device: torch.device | None = None) -> None:
        """Build the model.

        Args:
            task: What is trained.
            device: Where to; None leaves the model where the task puts it.
        """
        self._task = task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = task.model()
        self.model: nn.Module = model if device is None else model.to(device)
        self.model.train()
        self.optimizer = task.optimizer(self.model.parameters())
        parameter = next(iter(self.model.parameters()), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self._size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]

    def batch(self, size: int) -> Any:
        """Return a collated batch of the first samples, over again where there are too few."""
        indices = [index % self._size for index in range(size)]
        batch = collate_samples(self._task.train_set, indices, self._task.collate)
        return to_device(batch, self.device)

    def backward(self, batch: Any) -> None:
        """Run a forward and backward pass."""
        self._task.loss(self.model, batch).backward()

    def update(self) -> None:
        """Take the optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def bytes_needed(self, size: int, gauge: MemoryGauge) -> int | None:
        """Return the bytes that a pass takes at its peak; None if it does not fit.

        Args:
            size: Samples of the pass.
            gauge: Measures it, and stops it at its limit.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            batch = self.batch(size)
            with gauge.watch():
                self.backward(batch)
            self.wait()
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the pass had allocated
            self.model.zero_grad(set_to_none=True)
            gauge.release()
            return None
        self.model.zero_grad(set_to_none=True)
        needed = gauge.needed()
        return needed if needed <= gauge.free() else None


def bytes_of_pass(task: Task, size: int, memory_limit: int) -> int | None:
    """Return the bytes that a pass of a fresh model takes; None beyond the limit."""
    runner = PassRunner(task)
    return runner.bytes_needed(size, make_gauge(runner.device, memory_limit))


def to_device(value: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; lists, tuples and mappings are gone through."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value
