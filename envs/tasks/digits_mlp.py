"""Handwritten digits, 8x8 pixels, by a multilayer perceptron."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import SGD, AdamW

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.digits import CLASSES, IMAGE_SIDE, digits
from rlbatch.envs.tasks.table import (
    SGD_MOMENTUM,
    OptimizerMaker,
    classification_loss,
    collate_table,
    largest_batch_size,
    multilayer_perceptron,
)

HIDDEN_UNITS = 64
BATCH_SIZE = 32  # samples
TARGET = 0.12  # nats of validation cross entropy
ADAMW_LEARNING_RATE = 4e-3
SGD_LEARNING_RATE = 0.04


def model() -> nn.Module:
    """Return a fresh 64-64-64-10 perceptron (9,000 parameters)."""
    return multilayer_perceptron(IMAGE_SIDE**2, HIDDEN_UNITS, HIDDEN_UNITS, CLASSES)


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("digits-mlp", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    return _task("digits-mlp-sgd", partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM))


def _task(name: str, optimizer: OptimizerMaker) -> Task:
    train_set, val_set = digits()
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
