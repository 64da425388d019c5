"""A task that trains in milliseconds: noisy linear regression on 50 samples, SGD."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.utils.data import TensorDataset

from rlbatch.envs.task import Task


def make() -> Task:
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(6, 1, generator=generator)

    def data(count: int) -> TensorDataset:
        x = torch.randn(count, 6, generator=generator)
        return TensorDataset(x, x @ weights + 0.3 * torch.randn(count, 1, generator=generator))

    return Task(
        name="cheap",
        model=lambda: nn.Linear(6, 1),
        train_set=data(50),
        val_set=data(40),
        loss=_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
        batch_size=8,
        target=0.3,
        max_batch_size=40,
    )


def scheduled() -> Task:
    def decay(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        return LinearLR(optimizer, 1.0, 0.1, steps)

    return _replaced(scheduler=decay)


def hopeless() -> Task:
    return _replaced(target=1e-6)


def held() -> Task:
    """Trains with up to 8 samples a batch; a larger one waits while there is a file `hold`."""
    hold = Path(__file__).with_name("hold")

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        while model.training and len(batch[0]) > 8 and hold.exists():
            time.sleep(0.05)
        return _loss(model, batch)

    return _replaced(loss=loss)


def broken() -> Task:
    raise RuntimeError("no data here")


def _replaced(**changes: Any) -> Task:
    from dataclasses import replace

    return replace(make(), **changes)


def _loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return ((model(x) - y) ** 2).mean()
