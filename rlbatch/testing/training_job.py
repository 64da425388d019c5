"""A small training for the contracts of loops: what it is made of, and what is reported of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rlbatch.policy import tools
from rlbatch.policy.base import Policy

LEARNING_RATE = 0.125
LARGEST = 24


class IndexedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs, targets and the index, so that who sees a batch knows what it is made of."""

    def __init__(self, size: int) -> None:
        """Draw the data of so many samples from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        self.targets = self.inputs.square().sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[index], self.targets[index], index


@dataclass(frozen=True)
class Follow:
    """A policy that asks for the batch size that a function of the steps made returns.

    Attributes:
        decide_size: From the optimizer steps made to a batch size.
    """

    decide_size: Callable[[int], int]
    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return nothing: there is no state."""
        return ()

    def decide(self, observation: Any, signals: Any, state: Any) -> tuple[Any, Any]:
        """Return the change to that size."""
        size = self.decide_size(int(signals.total_steps))
        change = math.log2(size / float(signals.batch_size))
        return tools.decision(change, "follow"), state


@dataclass(frozen=True)
class Job:
    """What `train` is to do.

    Attributes:
        dataset: To train on, shuffled, keeping the last partial batch.
        model: Model in float64; its loss is the mean squared error.
        batch_size: First batch size.
        micro_batch_size: Most samples of one forward pass.
        decide: Given the number of optimizer steps made, the batch size to ask for from then on.
        epochs: Passes over the data.
        learning_rate: For SGD without momentum.
        fixed: Train with the policy `fixed`.
        seed: What `make_job` was given.
    """

    dataset: IndexedDataset
    model: nn.Module
    batch_size: int
    micro_batch_size: int
    decide: Callable[[int], int]
    epochs: int
    learning_rate: float = LEARNING_RATE
    fixed: bool = False
    seed: int | None = None

    @property
    def policy(self) -> Policy | str:
        """What a controller decides by."""
        return "fixed" if self.fixed else Follow(self.decide)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a controller that decides after every step and does nothing else."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "min_batch_size": 1,
            "max_batch_size": LARGEST,
            "first_chunk_steps": 1,
            "min_chunk_steps": 1,
            "max_chunk_steps": 1,
            "on_error": "raise",
            "cost": "samples",
            "guard": None,
            "lr_coupling": "none",
        }


@dataclass(frozen=True)
class Step:
    """What `train` reports of one optimizer step.

    Attributes:
        batch_size: The batch size that was in force, as it would be logged.
        epoch: The epoch, from 0.
        micro_batches: The indices in each of its forward passes.
        parameters: Copies of the model's parameters right after the step.
        samples_seen: Samples of the run after the step, as the controller counts them; None where
            there is no controller.
    """

    batch_size: int
    epoch: int
    micro_batches: list[list[int]]
    parameters: list[Tensor] = field(repr=False)
    samples_seen: int | None = None

    @property
    def indices(self) -> list[int]:
        """All indices of the step."""
        return [index for batch in self.micro_batches for index in batch]


def make_job(seed: int | None, size: int = 53, epochs: int = 3, multiple: int = 1) -> Job:
    """Return a job with random batch sizes, or with the first one all along.

    Args:
        seed: Of the sizes; None for the first one.
        size: Samples of the data set.
        epochs: Passes over it.
        multiple: Of which all sizes are multiples.
    """

    def decide(step: int) -> int:
        if seed is None:
            return 8
        return multiple * random.Random(1000 * seed + step).randint(1, LARGEST // multiple)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Job(IndexedDataset(size), model, 8, 5, decide, epochs, seed=seed)
