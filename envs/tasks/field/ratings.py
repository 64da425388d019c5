"""How users rate items, by embeddings and a perceptron, without a schedule."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam

from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable, shuffled_split

TRAIN, VAL = 400_000, 2048
USERS, ITEMS, TASTES = 1000, 500, 6
WIDTH = 16
NOISE_STD = 0.3  # in standard deviations of the ratings


class Ratings(nn.Module):
    """A vector for each user and item, and a perceptron on both and their product."""

    def __init__(self) -> None:
        """Make the tables and the layers."""
        super().__init__()
        self.users = nn.Embedding(USERS, WIDTH)
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(3 * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return ratings [B] of pairs [B, 2] of a user and an item."""
        user, item = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        return self.perceptron(torch.cat([user, item, user * item], dim=1)).squeeze(-1)


def model() -> nn.Module:
    """Return a fresh network (25,600 parameters)."""
    return Ratings()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error."""
    pairs, ratings = batch
    return mse_loss(model(pairs), ratings)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pairs [N, 2] and ratings [N] of unit variance."""
    made = torch.Generator().manual_seed(25)
    users = torch.randn(USERS, TASTES, generator=made)
    items = torch.randn(ITEMS, TASTES, generator=made)
    count = TRAIN + VAL
    user = torch.randint(USERS, (count,), generator=made)
    # Some items are rated far more often than others.
    popularity = torch.arange(1, ITEMS + 1, dtype=torch.float32) ** -0.7
    item = torch.multinomial(popularity, count, replacement=True, generator=made)
    clean = torch.tanh((users[user] * items[item]).sum(dim=1) / TASTES**0.5) + 0.3 * items[item, 0]
    clean = (clean - clean.mean()) / clean.std()
    ratings = clean + NOISE_STD * torch.randn(count, generator=made)
    return shuffled_split((torch.stack([user, item], dim=1), ratings), VAL)


JOB = FieldJob(
    name="ratings",
    model=model,
    tables=tables,
    loss=loss,
    optimizer=partial(Adam, lr=0.012),
    scheduler=None,
    batch_size=256,  # ratings
    epochs=1,
    target=0.17,
)
