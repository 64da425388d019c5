"""Validation of a live run: the collated batches are kept, since a run validates often."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlbatch.envs.task import Task, collate_samples

_BATCH = 1024  # samples a forward pass


class Validator:
    """Evaluates a task's model on its validation set."""

    def __init__(self, task: Task) -> None:
        """Collate nothing before the first use."""
        self._task = task
        self._size: int = len(task.val_set)  # pyright: ignore[reportArgumentType]
        self._batches: list[tuple[Any, int]] = []

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Return the mean validation loss; the model is left in train mode."""
        if not self._batches:
            self._batches = [self._batch(start) for start in range(0, self._size, _BATCH)]
        model.eval()
        total = 0.0
        for batch, size in self._batches:
            total += float(self._task.loss(model, batch)) * size
        model.train()
        return total / self._size

    def _batch(self, start: int) -> tuple[Any, int]:
        indices = range(start, min(start + _BATCH, self._size))
        return collate_samples(self._task.val_set, indices, self._task.collate), len(indices)
