"""What the outside jobs share: sizes, rates and targets, and the users who chose other sizes.

The jobs were written, to try the shipped policy on, by somebody who had not seen the tasks it was
made with. `NAME` is a job at the batch size for which its rate was tuned; `NAME_small` and
`NAME_large` are of users who took an eighth or eight times of it, the rate by the square root.

    rlbatch bench --task scripts/outside_jobs/curves.py:load_tcn --policy default --out out/outside
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from rlbatch.envs import Task

OTHERS = {"small": 0.125, "large": 8.0}


@dataclass(frozen=True)
class Job:
    """A user's choices.

    Attributes:
        batch_size: Samples a step.
        rate: Learning rate for it.
        target: Validation loss.
        epochs: Length of the run that was planned, and of its schedule if it has one.
    """

    batch_size: int
    rate: float
    target: float
    epochs: float


JOBS = {
    "textures_cnn": Job(batch_size=64, rate=0.02, target=0.2545, epochs=1.5),
    "words_lstm": Job(batch_size=32, rate=0.03, target=2.25, epochs=1),
    "dates_seq2seq": Job(batch_size=32, rate=0.016, target=0.003, epochs=0.7),
    "churn_resmlp": Job(batch_size=256, rate=0.01, target=0.365, epochs=10),
    "ranking_towers": Job(batch_size=256, rate=0.004, target=0.575, epochs=2),
    "load_tcn": Job(batch_size=64, rate=0.01, target=0.3895, epochs=1.5),
    "cells_unet": Job(batch_size=32, rate=0.01, target=0.319, epochs=0.8),
    "borehole_mlp": Job(batch_size=128, rate=0.015, target=0.03, epochs=8),
}


class Rows(Dataset[tuple[torch.Tensor, ...]]):
    """Tensors with one row a sample; a batch is fetched by one index."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Take tensors of equal length."""
        self.tensors = tensors

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return a sample."""
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        """Return a batch."""
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def as_is(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return what `Rows` made a batch of already."""
    return batch


def rate(name: str, factor: float) -> float:
    """Return the learning rate of the user whose size is so many times the job's."""
    return JOBS[name].rate * math.sqrt(factor)


def make(name: str, factor: float, **fields: Any) -> Task:
    """Return a job as a task, for the user whose size is so many times the job's."""
    job = JOBS[name]
    suffix = next((f"-{user}" for user, times in OTHERS.items() if times == factor), "")
    return Task(
        name=name.replace("_", "-") + suffix,
        batch_size=round(job.batch_size * factor),
        target=job.target,
        epochs=job.epochs,
        **fields,
    )


def others(*makers: Callable[[float], Task]) -> dict[str, Callable[[], Task]]:
    """Return the jobs of the users who chose other sizes, by name."""
    return {
        f"{maker.__name__}_{user}": partial(maker, factor)
        for maker in makers
        for user, factor in OTHERS.items()
    }
