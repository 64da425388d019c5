"""One training step of a task: what is wrong with its functions shows there, and not after hours.

What the functions themselves raise is passed on: its place is theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.envs.task import Task, collate_samples
from rlbatch.errors import ConfigurationError

_PLANNED = 100  # steps of the schedule that is tried


def check_task(task: Task) -> None:
    """Train a fresh model for a step at the task's batch size, and validate it on a few samples.

    The random state of the caller is left as it was.

    Raises:
        ConfigurationError: A function of the task returns something else than it is to.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.model()
        _require(isinstance(model, nn.Module), task, "model() must return a torch.nn.Module", model)
        optimizer = task.optimizer(model.parameters())
        _require(
            isinstance(optimizer, Optimizer),
            task,
            "optimizer(parameters) must return a torch.optim.Optimizer",
            optimizer,
        )
        if task.scheduler is not None:
            schedule: Any = task.scheduler(optimizer, _PLANNED)
            steps = callable(getattr(schedule, "step", None))
            _require(steps, task, "scheduler(optimizer, steps) must return a schedule", schedule)
        loss = _loss(task, model, task.train_set, "train_set")
        if not loss.requires_grad:
            raise ConfigurationError(
                f"Task {task.name!r}: loss(model, batch) does not depend on the model's parameters."
                " Compute it from what the model returns."
            )
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            _loss(task, model, task.val_set, "val_set")


def _loss(task: Task, model: nn.Module, dataset: Any, name: str) -> Tensor:
    """Return the loss of a first batch, which is to be a finite scalar."""
    indices = range(min(task.batch_size, len(dataset)))
    loss: Any = task.loss(model, collate_samples(dataset, indices, task.collate))
    wanted = "loss(model, batch) must return a scalar tensor, the mean over the batch"
    scalar = isinstance(loss, Tensor) and loss.numel() == 1
    _require(scalar, task, wanted, loss)
    if not bool(torch.isfinite(loss)):
        raise ConfigurationError(
            f"Task {task.name!r}: the loss of a fresh model on the first {len(indices)} samples of "
            f"{name} is {loss.item()}. Look for missing values in the data, and for a division or "
            "logarithm in the loss."
        )
    return loss


def _require(holds: bool, task: Task, wanted: str, found: Any) -> None:
    if holds:
        return
    what = (
        f"a tensor of shape {tuple(found.shape)}"
        if isinstance(found, Tensor)
        else f"{type(found).__name__}"
    )
    raise ConfigurationError(f"Task {task.name!r}: {wanted}, got {what}.")
