"""Handwritten digits, 8x8 pixels, by a small convolutional network."""

from __future__ import annotations

from torch import nn

from rlbatch.envs.tasks.digits import CLASSES, IMAGE_SIDE, digits
from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import classification_loss

CHANNELS = (8, 16)


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


FAMILY = TaskFamily(
    name="digits-cnn",
    model=model,
    tables=digits,
    loss=classification_loss,
    batch_size=32,  # samples
    target=0.15,  # nats of validation cross entropy
    adamw_learning_rate=8e-3,
    sgd_learning_rate=0.02,
)
