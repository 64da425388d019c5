"""Regression on the outputs of a fixed random network, the teacher, with observation noise."""

from __future__ import annotations

import functools

import torch
from torch import nn

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import TensorTable, multilayer_perceptron, regression_loss

INPUTS = 16
TEACHER_UNITS = 16
STUDENT_UNITS = 64
TRAIN_SAMPLES, VAL_SAMPLES = 4096, 512
NOISE_STD = 0.1  # in standard deviations of the teacher's output
DATA_SEED = 0


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


FAMILY = TaskFamily(
    name="teacher-student",
    model=model,
    tables=samples,
    loss=regression_loss,
    batch_size=32,  # samples
    target=0.04,  # mean squared error; predicting the mean gives 1
    adamw_learning_rate=4e-3,
    sgd_learning_rate=0.02,
)
