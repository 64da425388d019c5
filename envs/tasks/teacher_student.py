"""Regression on the outputs of a fixed random network, the teacher, with observation noise."""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import nn
from torch.optim import SGD, AdamW

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import (
    SGD_MOMENTUM,
    OptimizerMaker,
    TensorTable,
    collate_table,
    largest_batch_size,
    multilayer_perceptron,
    regression_loss,
)

INPUTS = 16
TEACHER_UNITS = 16
STUDENT_UNITS = 64
TRAIN_SAMPLES, VAL_SAMPLES = 4096, 512
NOISE_STD = 0.1  # in standard deviations of the teacher's output
DATA_SEED = 0
BATCH_SIZE = 32  # samples
TARGET = 0.04  # mean squared error; predicting the mean gives 1
ADAMW_LEARNING_RATE = 4e-3
SGD_LEARNING_RATE = 0.02


def model() -> nn.Module:
    """Return a fresh student, wider than the teacher (5,313 parameters)."""
    return multilayer_perceptron(INPUTS, STUDENT_UNITS, STUDENT_UNITS, 1)


@functools.cache
def samples() -> tuple[TensorTable, TensorTable]:
    """Return training and validation inputs [N, 16] and targets [N] of zero mean, unit variance."""
    generator = torch.Generator().manual_seed(DATA_SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = normal(TRAIN_SAMPLES + VAL_SAMPLES, INPUTS)
    hidden = torch.relu(inputs @ normal(INPUTS, TEACHER_UNITS) / INPUTS**0.5)
    clean = hidden @ normal(TEACHER_UNITS)
    targets = (clean - clean.mean()) / clean.std() + NOISE_STD * normal(len(inputs))
    cut = TRAIN_SAMPLES
    return TensorTable(inputs[:cut], targets[:cut]), TensorTable(inputs[cut:], targets[cut:])


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("teacher-student", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    return _task("teacher-student-sgd", partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM))


def _task(name: str, optimizer: OptimizerMaker) -> Task:
    train_set, val_set = samples()
    return Task(
        name=name,
        model=model,
        train_set=train_set,
        val_set=val_set,
        loss=regression_loss,
        optimizer=optimizer,
        batch_size=BATCH_SIZE,
        target=TARGET,
        max_batch_size=largest_batch_size(len(train_set)),
        collate=collate_table,
    )
