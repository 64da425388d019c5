"""What several test modules train."""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset


def fuzzed(count: int) -> int:
    """Return how many damaged inputs a test tries: RLBATCH_FUZZ=10 tries ten times as many.

    The first ones are always the same, so the many are for those who change what reads them.
    """
    return count * int(os.environ.get("RLBATCH_FUZZ", "1"))


def perceptron(dropout: float = 0.2) -> nn.Module:
    """Return 6 inputs, 16 hidden units and an output; its weights are what the seed makes them."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def tanh_network(*widths: int, seed: int | None = None) -> nn.Sequential:
    """Return linear layers of these widths with tanh between them.

    Args:
        widths: Of the input, each hidden layer and the output.
        seed: Of the weights; torch's generators are left as it leaves them. None: as they come.
    """
    if seed is not None:
        torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def optimizer_step(optimizer: Optimizer, scaler: Any = None) -> None:
    """Make a step, by way of the scaler if there is one, and forget the gradients."""
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def drawn_rows(samples: int) -> TensorDataset:
    """Return random numbers: three inputs and a target for each sample."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=generator)
    return TensorDataset(x, torch.randn(samples, 1, generator=generator))
