"""Which shape a small noisy picture shows, by a CNN with batch normalisation and dropout."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import AdamW

from rlbatch.envs.tasks.field import images, schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.field.layers import convolution
from rlbatch.envs.tasks.table import TensorTable, classification_loss, shuffled_split

TRAIN, VAL = 50_000, 768
SIDE = 12
NOISE = 0.2


def model() -> nn.Module:
    """Return a fresh network (6,800 parameters)."""
    return nn.Sequential(
        convolution(1, 8, stride=2),
        convolution(8, 16, stride=2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * (SIDE // 4) ** 2, images.SHAPES),
    )


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pictures [N, 1, 12, 12] with their classes [N]."""
    return shuffled_split(images.shapes(TRAIN + VAL, SIDE, NOISE, seed=11), VAL)


JOB = FieldJob(
    name="shapes-cnn",
    model=model,
    tables=tables,
    loss=classification_loss,
    optimizer=partial(AdamW, lr=6e-3, weight_decay=0.05),
    scheduler=schedules.cosine(warm_up=0.05),
    batch_size=64,  # pictures
    epochs=2,
    target=1.36,
)
