"""Jobs with pictures: textures to name, cells to cut out."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from outside import Rows, as_is, make, others, rate
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR
from torch.utils.data import Dataset, TensorDataset

from rlbatch.envs import Task

# Textures: a CNN with batch normalisation, momentum SGD, step decay


@cache
def _textures() -> tuple[Dataset, Dataset]:
    """Ten kinds of gratings (5 directions, 2 wavelengths), of any colour, under another one."""
    rng = np.random.default_rng(101)
    count, side = 52_000, 16
    label = rng.integers(0, 10, count)
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")

    def grating(angle, wave):
        phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
        along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        return np.sin(2 * np.pi * along / wave[:, None, None] + phase)

    angle = (label % 5) * np.pi / 5 + rng.normal(0, 0.12, count)
    wave = np.where(label < 5, 3.5, 6.0) * rng.uniform(0.85, 1.15, count)
    image = grating(angle, wave)[:, None] * rng.uniform(0.3, 1.0, (count, 3, 1, 1))
    other = grating(rng.uniform(0, np.pi, count), rng.uniform(8, 14, count))
    image = image + 0.8 * other[:, None] * rng.uniform(0, 1, (count, 3, 1, 1))
    image = image + rng.normal(0, 0.9, image.shape)
    wrong = rng.random(count) < 0.04
    label = np.where(wrong, rng.integers(0, 10, count), label)
    images, labels = torch.tensor(image, dtype=torch.float32), torch.tensor(label)
    return Rows(images[:50_000], labels[:50_000]), Rows(images[50_000:], labels[50_000:])


def _texture_network() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 12, 2),
        *block(12, 20, 1),
        *block(20, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _classify(model: nn.Module, batch) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _step_decay(optimizer, steps: int):
    return MultiStepLR(optimizer, [max(1, steps // 2), max(2, steps * 3 // 4)], gamma=0.2)


def textures_cnn(factor: float = 1.0) -> Task:
    """Texture classification as image people do it."""
    train, val = _textures()
    lr = rate("textures_cnn", factor)
    return make(
        "textures_cnn",
        factor,
        model=_texture_network,
        train_set=train,
        val_set=val,
        loss=_classify,
        optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=lr, momentum=0.9, weight_decay=5e-4
        ),
        scheduler=_step_decay,
        collate=as_is,
    )


# Cells: segmentation with a small U-Net, AdamW, warm-up and cosine


@cache
def _cells() -> tuple[Dataset, Dataset]:
    """Discs and rings on an uneven background: 0 background, 1 disc, 2 ring."""
    rng = np.random.default_rng(107)
    count, side = 51_500, 12
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    slope = rng.normal(0, 0.05, (count, 2, 1, 1))
    image = slope[:, 0] * (x - 6) + slope[:, 1] * (y - 6)
    label = np.zeros((count, side, side), dtype=np.int64)
    for _ in range(2):
        middle = rng.uniform(1, 11, (count, 2, 1, 1))
        radius = rng.uniform(2, 4.5, (count, 1, 1))
        away = np.hypot(x - middle[:, 0], (y - middle[:, 1]) * rng.uniform(0.8, 1.3, (count, 1, 1)))
        ring = rng.random((count, 1, 1)) < 0.5
        drawn = (away < radius) & (~ring | (away > radius - 1.7))
        bright = rng.uniform(0.5, 1.3, (count, 1, 1))
        image = np.where(drawn, bright, image)
        label = np.where(drawn, 1 + ring, label)
    image = image + rng.normal(0, 0.45, image.shape)
    images, labels = torch.tensor(image, dtype=torch.float32)[:, None], torch.tensor(label)
    return TensorDataset(images[:50_000], labels[:50_000]), TensorDataset(
        images[50_000:], labels[50_000:]
    )


class SmallUNet(nn.Module):
    """Two levels, one skip connection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

        self.above = block(1, width)
        self.below = nn.Sequential(
            nn.MaxPool2d(2), block(width, 2 * width), block(2 * width, 2 * width)
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Sequential(block(2 * width, width), nn.Conv2d(width, 3, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares."""
        above = self.above(image)
        return self.last(torch.cat([above, self.up(self.below(above))], 1))


def _warm_cosine(optimizer, steps: int):
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return LambdaLR(optimizer, factor)


def cells_unet(factor: float = 1.0) -> Task:
    """Segmentation."""
    train, val = _cells()
    lr = rate("cells_unet", factor)
    return make(
        "cells_unet",
        factor,
        model=SmallUNet,
        train_set=train,
        val_set=val,
        loss=_classify,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05),
        scheduler=_warm_cosine,
    )


globals().update(others(textures_cnn, cells_unet))
