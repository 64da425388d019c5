"""Which tasks can be trained without PyTorch: plain perceptrons on tables."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import (
    TensorTable,
    classification_loss,
    collate_table,
    regression_loss,
)

_UNSUPPORTED = ("amsgrad", "maximize", "nesterov", "dampening")


def is_perceptron_task(task: Task) -> bool:
    """Return whether a task is of the kind that `PerceptronBackend` trains.

    That is a `table.multilayer_perceptron` on `table.TensorTable`s, with the losses from there,
    by plain SGD (with or without momentum), Adam or AdamW.
    """
    tables = isinstance(task.train_set, TensorTable) and isinstance(task.val_set, TensorTable)
    losses = task.loss in (classification_loss, regression_loss)
    if not (tables and losses and task.collate is collate_table):
        return False
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    return is_perceptron(model) and is_plain(task.optimizer(model.parameters()))


def is_perceptron(model: nn.Module) -> bool:
    """Return whether a network is linear layers with ReLU between them, in single precision."""
    if type(model) is not nn.Sequential or len(model) % 2 == 0:
        return False
    kinds = [nn.ReLU if index % 2 else nn.Linear for index in range(len(model))]
    return all(type(layer) is kind for layer, kind in zip(model, kinds, strict=True)) and all(
        p.requires_grad and p.dtype == torch.float32 for p in model.parameters()
    )


def is_plain(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is SGD, Adam or AdamW without the options that are left out."""
    groups = optimizer.param_groups
    return (
        type(optimizer) in (SGD, Adam, AdamW)
        and len(groups) == 1
        and not any(groups[0].get(name) for name in _UNSUPPORTED)
    )
