"""Handwritten digits, 8x8 pixels, by a multilayer perceptron."""

from __future__ import annotations

from torch import nn

from rlbatch.envs.tasks.digits import CLASSES, IMAGE_SIDE, digits
from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import classification_loss, multilayer_perceptron

HIDDEN_UNITS = 64


def model() -> nn.Module:
    """Return a fresh 64-64-64-10 perceptron (9,000 parameters)."""
    return multilayer_perceptron(IMAGE_SIDE**2, HIDDEN_UNITS, HIDDEN_UNITS, CLASSES)


FAMILY = TaskFamily(
    name="digits-mlp",
    model=model,
    tables=digits,
    loss=classification_loss,
    batch_size=32,  # samples
    target=0.12,  # nats of validation cross entropy
    adamw_learning_rate=4e-3,
    sgd_learning_rate=0.04,
)
