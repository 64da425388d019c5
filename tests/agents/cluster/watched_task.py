"""A task that writes down each run that begins, and takes its time where a file says so.

It is copied, so that what it writes lies beside the copy.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rlbatch.envs.task import Task

HERE = Path(__file__).parent


def make() -> Task:
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(6, 1, generator=generator)

    def data(count: int) -> TensorDataset:
        x = torch.randn(count, 6, generator=generator)
        return TensorDataset(x, x @ weights + 0.3 * torch.randn(count, 1, generator=generator))

    return Task(
        name="watched",
        model=_model,
        train_set=data(50),
        val_set=data(40),
        loss=_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
        batch_size=8,
        target=0.3,
        max_batch_size=40,
    )


def failing() -> Task:
    return replace(make(), model=_no_model)


def _model() -> nn.Module:
    with (HERE / "begun.txt").open("a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\n")
    if (HERE / "slow").exists():
        time.sleep(0.4)
    return nn.Linear(6, 1)


def _no_model() -> Any:
    raise OverflowError("no model for you")


def _loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return ((model(x) - y) ** 2).mean()
