"""What a job of the field suite is made of."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlbatch.envs.task import Task, planned_length
from rlbatch.envs.tasks.field import PREFIX
from rlbatch.envs.tasks.field.schedules import Scheduler
from rlbatch.envs.tasks.table import TensorTable, collate_table

LARGEST_MULTIPLE = 64
"""Of the job's batch size, up to which a run may grow."""


@dataclass(frozen=True, kw_only=True)
class FieldJob:
    """A training job of ordinary size: a task, and the length that its user gives it.

    Attributes:
        name: Of the family; the task is called `field:` and this.
        model: Returns a fresh network.
        tables: Makes the training and the validation rows; called once, when they are asked for.
        loss: Mean loss of one batch.
        optimizer: Makes the optimizer, with the learning rate set.
        scheduler: Makes the learning rate schedule; None keeps the rate constant.
        batch_size: Samples per optimizer step for which the rate was chosen.
        epochs: Length of a run and of its schedule, in passes over the training rows.
        target: Validation loss that ends a run under the objective `target`.
    """

    name: str
    model: Callable[[], nn.Module]
    tables: Callable[[], tuple[TensorTable, TensorTable]]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    scheduler: Scheduler | None
    batch_size: int
    epochs: float
    target: float

    def rows(self) -> tuple[TensorTable, TensorTable]:
        """Return the training and the validation rows, made once in a process."""
        return _made_once(self.tables)

    def task(self) -> Task:
        """Return the job as a task."""
        train_set, val_set = self.rows()
        most = 1 << (len(train_set).bit_length() - 1)
        return Task(
            name=f"{PREFIX}{self.name}",
            model=self.model,
            train_set=train_set,
            val_set=val_set,
            loss=self.loss,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            target=self.target,
            max_batch_size=min(most, LARGEST_MULTIPLE * self.batch_size),
            scheduler=self.scheduler,
            collate=collate_table,
        )

    def planned_steps(self) -> int:
        """Return the steps of a run at the job's batch size."""
        return planned_length(self.epochs, len(self.rows()[0]), self.batch_size)

    def fingerprint(self) -> str:
        """Return a text that differs when the data, the network, the optimizer or the length do.

        Learning curves are kept under it. It does not differ with wording, and it does where a
        text of the standard library does.
        """
        parameters = [list(p.shape) for p in self.model().parameters()]
        columns = [
            # Few digits: on another processor the last ones of a product may differ.
            (list(column.shape), round(column.double().mean().item(), 5))
            for table in self.rows()
            for column in table.columns
        ]
        optimizer = self.optimizer([nn.Parameter(torch.zeros(1))])
        rates = [] if self.scheduler is None else _rates(self.scheduler(optimizer, 100))
        parts = (parameters, columns, sorted(map(str, optimizer.defaults.items())), rates)
        return hashlib.sha256(repr((parts, self.epochs)).encode()).hexdigest()[:16]


@functools.cache
def _made_once(tables: Callable[[], tuple[TensorTable, TensorTable]]) -> Any:
    return tables()


def _rates(schedule: LRScheduler) -> list[float]:
    found: list[float] = []
    for _ in range(100):
        found.append(round(float(schedule.get_last_lr()[0]), 9))
        schedule.optimizer.step()
        schedule.step()
    return found
