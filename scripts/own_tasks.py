"""Tasks of a second, as a user might have them: what `rlbatch train --task` is measured on.

rlbatch train --task scripts/own_tasks.py:letters --out DIR
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from rlbatch.envs import Task


def sines() -> Task:
    """Regression on sums of sines, by a network of three layers."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 20, generator=g)
    w = torch.randn(20, 8, generator=g) / 20**0.5
    y = torch.sin(2 * x @ w).sum(1, keepdim=True) + 0.1 * torch.randn(6000, 1, generator=g)
    return Task(
        name="sines",
        model=lambda: nn.Sequential(
            *(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        ),
        train_set=TensorDataset(x[:5000], y[:5000]),
        val_set=TensorDataset(x[5000:], y[5000:]),
        loss=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        batch_size=64,
        target=2.0,
    )


class LetterNet(nn.Module):
    """The mean of the letters' embeddings, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 12))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Return the logits of bags of letters."""
        return self.head(self.embed(letters).mean(1))


def letters() -> Task:
    """Which of twelve sources drew a bag of letters, with momentum SGD."""
    g = torch.Generator().manual_seed(2)
    sources = torch.softmax(1.2 * torch.randn(12, 40, generator=g), 1)
    labels = torch.randint(12, (6000,), generator=g)
    text = torch.multinomial(sources[labels], 16, replacement=True, generator=g)
    return Task(
        name="letters",
        model=LetterNet,
        train_set=TensorDataset(text[:5000], labels[:5000]),
        val_set=TensorDataset(text[5000:], labels[5000:]),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.005, momentum=0.9),
        batch_size=32,
        target=0.9,
    )


def images() -> Task:
    """Handwritten digits, by a small convolutional network."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    return Task(
        name="images",
        model=lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(256, 10)),
        ),
        train_set=TensorDataset(x[:1400], y[:1400]),
        val_set=TensorDataset(x[1400:], y[1400:]),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        batch_size=16,
        target=0.15,
    )
