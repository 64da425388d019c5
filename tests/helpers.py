"""What several test modules train."""

from __future__ import annotations

from torch import nn


def perceptron(dropout: float = 0.2) -> nn.Module:
    """Return 6 inputs, 16 hidden units and an output; its weights are what the seed makes them."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
