"""Regression on Friedman's first function: five of ten inputs matter, one product is curved.

J. Friedman, Multivariate adaptive regression splines, Annals of Statistics 19 (1991), equation 61.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import (
    TensorTable,
    multilayer_perceptron,
    regression_loss,
    shuffled_split,
)

INPUTS = 10
HIDDEN_UNITS = 64
TRAIN_SAMPLES, VAL_SAMPLES = 2048, 512
NOISE_STD = 1.0  # the clean function has a standard deviation of about 4.9
DATA_SEED = 0


def model() -> nn.Module:
    """Return a fresh 10-64-64-1 perceptron (4,929 parameters)."""
    return multilayer_perceptron(INPUTS, HIDDEN_UNITS, HIDDEN_UNITS, 1)


@functools.cache
def samples() -> tuple[TensorTable, TensorTable]:
    """Return training and validation inputs [N, 10] and values [N], all of unit variance."""
    generator = torch.Generator().manual_seed(DATA_SEED)
    x = torch.rand(TRAIN_SAMPLES + VAL_SAMPLES, INPUTS, generator=generator)
    clean = (
        10.0 * torch.sin(math.pi * x[:, 0] * x[:, 1])
        + 20.0 * (x[:, 2] - 0.5) ** 2
        + 10.0 * x[:, 3]
        + 5.0 * x[:, 4]
    )
    values = clean + NOISE_STD * torch.randn(len(x), generator=generator)
    inputs = (x - 0.5) * math.sqrt(12.0)  # a uniform variable has a variance of 1/12
    return shuffled_split((inputs, (values - values.mean()) / values.std()), VAL_SAMPLES)


FAMILY = TaskFamily(
    name="tabular-regression",
    model=model,
    tables=samples,
    loss=regression_loss,
    batch_size=16,  # samples
    target=0.1,  # mean squared error; predicting the mean gives 1, the noise alone 0.04
    adamw_learning_rate=8e-3,
    sgd_learning_rate=0.02,
)
