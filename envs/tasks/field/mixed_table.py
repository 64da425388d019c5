"""Yes or no from numbers and categories, by a perceptron with embeddings and dropout."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import AdamW

from rlbatch.envs.tasks.field import schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable, shuffled_split

TRAIN, VAL = 20_000, 2048
NUMBERS, COLUMNS, CATEGORIES = 16, 6, 20
TREES, DEPTH = 40, 3
WRONG = 0.05  # share of labels that are turned


class Mixed(nn.Module):
    """Embeddings of the categories beside the numbers, and a perceptron."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(CATEGORIES, 4) for _ in range(COLUMNS))
        self.perceptron = nn.Sequential(
            nn.Linear(NUMBERS + 4 * COLUMNS, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Return logits [B] for numbers [B, 16] and categories [B, 6]."""
        parts = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        return self.perceptron(torch.cat([numbers, *parts], dim=1)).squeeze(-1)


def model() -> nn.Module:
    """Return a fresh network (5,400 parameters)."""
    return Mixed()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy in nats."""
    numbers, categories, answers = batch
    return binary_cross_entropy_with_logits(model(numbers, categories), answers)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation numbers [N, 16], categories [N, 6] and answers [N].

    The answer is the sign of a sum of small random trees of both, some labels turned.
    """
    made = torch.Generator().manual_seed(24)
    count = TRAIN + VAL
    numbers = torch.randn(count, NUMBERS, generator=made)
    categories = torch.randint(CATEGORIES, (count, COLUMNS), generator=made)
    scores = torch.randn(COLUMNS, CATEGORIES, generator=made)
    placed = torch.stack([scores[i][categories[:, i]] for i in range(COLUMNS)], dim=1)
    seen = torch.cat([numbers, placed], dim=1)
    total = torch.zeros(count)
    for _ in range(TREES):
        columns = torch.randint(seen.shape[1], (DEPTH,), generator=made)
        cuts = 0.7 * torch.randn(DEPTH, generator=made)
        leaf = ((seen[:, columns] > cuts).long() * (2 ** torch.arange(DEPTH))).sum(dim=1)
        total += torch.randn(2**DEPTH, generator=made)[leaf]
    turned = torch.rand(count, generator=made) < WRONG
    answers = ((total > total.median()) ^ turned).to(torch.float32)
    return shuffled_split((numbers, categories, answers), VAL)


JOB = FieldJob(
    name="mixed-table",
    model=model,
    tables=tables,
    loss=loss,
    optimizer=partial(AdamW, lr=1.2e-2, weight_decay=0.05),
    scheduler=schedules.cosine(warm_up=0.1, floor=0.05),
    batch_size=128,  # rows
    epochs=8,
    target=0.53,
)
