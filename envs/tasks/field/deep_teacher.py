"""Regression on a deep random network, with more samples than a run sees once."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim import Adam

from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import (
    TensorTable,
    multilayer_perceptron,
    regression_loss,
    shuffled_split,
)

TRAIN, VAL = 1_000_000, 2048
INPUTS, TEACHER_UNITS, TEACHER_LAYERS = 12, 24, 4
NOISE_STD = 0.1  # in standard deviations of the teacher's output


def model() -> nn.Module:
    """Return a fresh student (9,200 parameters)."""
    return multilayer_perceptron(INPUTS, 64, 64, 64, 1)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation inputs [N, 12] and targets [N] of unit variance."""
    made = torch.Generator().manual_seed(13)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    inputs = normal(TRAIN + VAL, INPUTS)
    hidden, width = inputs, INPUTS
    for _ in range(TEACHER_LAYERS):
        hidden = torch.tanh(hidden @ normal(width, TEACHER_UNITS) * (1.3 / width**0.5))
        width = TEACHER_UNITS
    clean = hidden @ normal(width)
    targets = (clean - clean.mean()) / clean.std() + NOISE_STD * normal(len(inputs))
    return shuffled_split((inputs, targets), VAL)


JOB = FieldJob(
    name="deep-teacher",
    model=model,
    tables=tables,
    loss=regression_loss,
    optimizer=partial(Adam, lr=6e-3),
    scheduler=None,
    batch_size=256,  # samples
    epochs=0.3,
    target=0.037,
)
