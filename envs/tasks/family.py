"""A built-in task in its two variants: with AdamW, and with SGD and momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import TensorTable, collate_table, largest_batch_size

SGD_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class TaskFamily:
    """What the two variants of a task have in common, and their learning rates.

    Attributes:
        name: Of the variant with AdamW; that with SGD is called `-sgd` behind it.
        model: Returns a fresh network.
        tables: Returns the training and the validation rows; called when a variant is asked for.
        loss: Mean loss of one batch.
        batch_size: Samples per optimizer step for which the learning rates were chosen.
        target: Validation loss that ends a run.
        adamw_learning_rate: Of AdamW.
        sgd_learning_rate: Of SGD with momentum.
    """

    name: str
    model: Callable[[], nn.Module]
    tables: Callable[[], tuple[TensorTable, TensorTable]]
    loss: Callable[[nn.Module, Any], Tensor]
    batch_size: int
    target: float
    adamw_learning_rate: float
    sgd_learning_rate: float

    def adamw(self) -> Task:
        """Return the task trained with AdamW."""
        return self._task(self.name, partial(AdamW, lr=self.adamw_learning_rate))

    def sgd(self) -> Task:
        """Return the task trained with SGD and momentum."""
        optimizer = partial(SGD, lr=self.sgd_learning_rate, momentum=SGD_MOMENTUM)
        return self._task(f"{self.name}-sgd", optimizer)

    def _task(self, name: str, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> Task:
        train_set, val_set = self.tables()
        return Task(
            name=name,
            model=self.model,
            train_set=train_set,
            val_set=val_set,
            loss=self.loss,
            optimizer=optimizer,
            batch_size=self.batch_size,
            target=self.target,
            max_batch_size=largest_batch_size(len(train_set)),
            collate=collate_table,
        )
