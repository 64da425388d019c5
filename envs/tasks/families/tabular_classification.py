"""Classification of generated tables: each class is several Gaussian clusters, with label noise."""

from __future__ import annotations

import functools

import torch
from torch import nn

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import (
    TensorTable,
    classification_loss,
    multilayer_perceptron,
    shuffled_split,
)

INPUTS = 12
CLASSES, CLUSTERS_PER_CLASS = 8, 4
CENTRE_STD = 1.2  # spread of the cluster centres, in standard deviations of a cluster
WRONG_LABELS = 0.05  # share of labels drawn anew
HIDDEN_UNITS = 64
TRAIN_SAMPLES, VAL_SAMPLES = 4096, 768
DATA_SEED = 0


def model() -> nn.Module:
    """Return a fresh 12-64-64-8 perceptron (5,512 parameters)."""
    return multilayer_perceptron(INPUTS, HIDDEN_UNITS, HIDDEN_UNITS, CLASSES)


@functools.cache
def samples() -> tuple[TensorTable, TensorTable]:
    """Return training and validation inputs [N, 12], standardised, and classes [N]."""
    generator = torch.Generator().manual_seed(DATA_SEED)
    count = TRAIN_SAMPLES + VAL_SAMPLES
    clusters = CLASSES * CLUSTERS_PER_CLASS
    centres = CENTRE_STD * torch.randn(clusters, INPUTS, generator=generator)
    cluster = torch.randint(clusters, (count,), generator=generator)
    inputs = centres[cluster] + torch.randn(count, INPUTS, generator=generator)
    wrong = torch.rand(count, generator=generator) < WRONG_LABELS
    drawn = torch.randint(CLASSES, (count,), generator=generator)
    labels = torch.where(wrong, drawn, cluster % CLASSES)
    return shuffled_split(((inputs - inputs.mean(0)) / inputs.std(0), labels), VAL_SAMPLES)


FAMILY = TaskFamily(
    name="tabular-classification",
    model=model,
    tables=samples,
    loss=classification_loss,
    batch_size=64,  # samples
    target=0.85,  # nats of validation cross entropy
    adamw_learning_rate=4e-3,
    sgd_learning_rate=0.04,
)
