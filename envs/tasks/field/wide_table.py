"""A class from 128 numbers, most of them of no account, by a perceptron with momentum."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim import SGD

from rlbatch.envs.tasks.field import schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import (
    TensorTable,
    classification_loss,
    multilayer_perceptron,
    shuffled_split,
)

TRAIN, VAL = 100_000, 2048
FEATURES, RELEVANT, CLASSES = 128, 32, 5
TEACHER_UNITS = 64


def model() -> nn.Module:
    """Return a fresh network (12,600 parameters)."""
    return multilayer_perceptron(FEATURES, 64, 64, CLASSES)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation rows [N, 128] with their classes [N].

    Classes are drawn from the softmax of a random network of the relevant numbers.
    """
    made = torch.Generator().manual_seed(12)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    rows = normal(TRAIN + VAL, FEATURES)
    hidden = torch.tanh(rows[:, :RELEVANT] @ normal(RELEVANT, TEACHER_UNITS) / RELEVANT**0.5 * 1.5)
    logits = hidden @ normal(TEACHER_UNITS, CLASSES) / TEACHER_UNITS**0.5 * 16.0
    classes = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=made).squeeze(1)
    return shuffled_split((rows, classes), VAL)


JOB = FieldJob(
    name="wide-table",
    model=model,
    tables=tables,
    loss=classification_loss,
    optimizer=partial(SGD, lr=0.06, momentum=0.9, weight_decay=1e-4),
    scheduler=schedules.step(0.5, 0.75),
    batch_size=512,  # rows
    epochs=5.2,
    target=0.503,
)
