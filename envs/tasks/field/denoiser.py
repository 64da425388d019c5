"""Clean pictures of strokes from noisy ones, by a convolutional network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam

from rlbatch.envs.tasks.field import images, schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable, shuffled_split

TRAIN, VAL = 60_000, 512
SIDE = 12
NOISE = 0.5


def model() -> nn.Module:
    """Return a fresh network (6,300 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, kernel_size=4, stride=2, padding=1),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error a pixel, times 100."""
    noisy, clean = batch
    return 100.0 * mse_loss(model(noisy), clean)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pairs of pictures [N, 1, 12, 12], noisy and clean."""
    clean = images.strokes(TRAIN + VAL, SIDE, seed=22)[:, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(23))
    return shuffled_split((clean + NOISE * noise, clean), VAL)


JOB = FieldJob(
    name="denoiser",
    model=model,
    tables=tables,
    loss=loss,
    optimizer=partial(Adam, lr=4e-3),
    scheduler=schedules.warmup_stable_decay(warm_up=0.02, decay=0.2),
    batch_size=64,  # pictures
    epochs=1.25,
    target=2.95,
)
