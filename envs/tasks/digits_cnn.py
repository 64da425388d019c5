"""Handwritten digits, 8x8 pixels, by a small convolutional network."""

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
)

CHANNELS = (8, 16)
BATCH_SIZE = 32  # samples
TARGET = 0.15  # nats of validation cross entropy
ADAMW_LEARNING_RATE = 8e-3
SGD_LEARNING_RATE = 0.02


def model() -> nn.Module:
    """Return a fresh network of two 3x3 convolutions and a linear layer (1,900 parameters)."""
    first, second = CHANNELS
    side = IMAGE_SIDE // 4  # two layers of stride 2
    return nn.Sequential(
        nn.Unflatten(1, (1, IMAGE_SIDE, IMAGE_SIDE)),
        nn.Conv2d(1, first, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * side**2, CLASSES),
    )


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("digits-cnn", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    return _task("digits-cnn-sgd", partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM))


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
