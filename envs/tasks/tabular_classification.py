"""Classification of generated tables: each class is several Gaussian clusters, with label noise."""

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
    classification_loss,
    collate_table,
    largest_batch_size,
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
BATCH_SIZE = 64  # samples
TARGET = 0.85  # nats of validation cross entropy
ADAMW_LEARNING_RATE = 4e-3
SGD_LEARNING_RATE = 0.04


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


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("tabular-classification", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    optimizer = partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM)
    return _task("tabular-classification-sgd", optimizer)


def _task(name: str, optimizer: OptimizerMaker) -> Task:
    train_set, val_set = samples()
    return Task(
        name=name,
        model=model,
        train_set=train_set,
        val_set=val_set,
        loss=classification_loss,
        optimizer=optimizer,
        batch_size=BATCH_SIZE,
        target=TARGET,
        max_batch_size=largest_batch_size(len(train_set)),
        collate=collate_table,
    )
