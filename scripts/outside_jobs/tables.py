"""Jobs with tables: customers who leave, what will be bought."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from outside import Rows, as_is, make, others, rate
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from rlbatch.envs import Task

# Customers who leave: tables with interactions, a residual MLP, AdamW, constant rate


@cache
def _customers() -> tuple[Dataset, Dataset]:
    rng = np.random.default_rng(104)
    count = 24_000
    numbers = rng.standard_normal((count, 16)).astype(np.float32)
    numbers[:, :4] = np.exp(0.6 * numbers[:, :4]) - 1.2
    kinds = np.stack([rng.integers(0, k, count) for k in (5, 12, 40)], 1)
    effect = [rng.normal(0, s, (k, 2)) for k, s in ((5, 0.8), (12, 0.8), (40, 0.6))]
    pulls = np.sum([effect[j][kinds[:, j]] for j in range(3)], axis=0)
    x = numbers
    logit = pulls[:, 0] + pulls[:, 1] * x[:, 4] + 1.2 * x[:, 0] * x[:, 5] - x[:, 6] * x[:, 7]
    logit += 1.5 * np.sin(2 * x[:, 8]) + np.where(x[:, 9] > 0.3, x[:, 10], -x[:, 11]) - 0.6
    left = (rng.random(count) < 1 / (1 + np.exp(-1.6 * logit))).astype(np.float32)
    parts = torch.tensor(numbers), torch.tensor(kinds), torch.tensor(left)
    return Rows(*(p[:20_000] for p in parts)), Rows(*(p[20_000:] for p in parts))


class ResidualTable(nn.Module):
    """Embeddings of the categories beside the numbers, then residual blocks with layer norm."""

    def __init__(self, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(k, d) for k, d in ((5, 3), (12, 4), (40, 6)))
        self.entry = nn.Linear(16 + 13, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.exit = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, numbers: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares."""
        embedded = [table(kinds[:, j]) for j, table in enumerate(self.embeddings)]
        x = self.entry(torch.cat([numbers, *embedded], 1))
        for block in self.blocks:
            x = x + block(x)
        return self.exit(x).squeeze(1)


def _leaves(model: nn.Module, batch) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(model(batch[0], batch[1]), batch[2])


def churn_resmlp(factor: float = 1.0) -> Task:
    """Churn prediction."""
    train, val = _customers()
    lr = rate("churn_resmlp", factor)
    return make(
        "churn_resmlp",
        factor,
        model=ResidualTable,
        train_set=train,
        val_set=val,
        loss=_leaves,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01),
        collate=as_is,
    )


# Ranking: two towers over embeddings, pairs (bought, not bought), Adam, constant rate

_PEOPLE, _GOODS = 600, 400


@cache
def _purchases() -> tuple[Dataset, Dataset]:
    """Triples (person, bought, not bought); popular people and goods appear more often."""
    rng = np.random.default_rng(105)
    count = 204_000
    taste = rng.standard_normal((_PEOPLE, 6)) / math.sqrt(6)
    kind = rng.standard_normal((_GOODS, 6))
    liked = 2.5 * taste @ kind.T + rng.normal(0, 0.7, _GOODS)
    often = 1 / np.arange(1, _PEOPLE + 1) ** 0.4
    person = rng.choice(_PEOPLE, count, p=often / often.sum())
    one, two = rng.integers(0, _GOODS, count), rng.integers(0, _GOODS, count)
    margin = liked[person, one] - liked[person, two]
    swap = rng.random(count) > 1 / (1 + np.exp(-2 * margin))
    bought, other = np.where(swap, two, one), np.where(swap, one, two)
    parts = [torch.tensor(p) for p in (person, bought, other)]
    return Rows(*(p[:200_000] for p in parts)), Rows(*(p[200_000:] for p in parts))


class Towers(nn.Module):
    """A tower of embedding and two layers for people, and one for goods."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def tower(rows: int) -> nn.Sequential:
            layers = nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, width)
            return nn.Sequential(nn.Embedding(rows, width), *layers)

        self.people, self.goods = tower(_PEOPLE), tower(_GOODS)
        self.popular = nn.Embedding(_GOODS, 1)
        nn.init.zeros_(self.popular.weight)

    def forward(self, person: Any, bought: Any, other: Any) -> torch.Tensor:
        """Return what the loss compares."""
        goods, count = torch.cat([bought, other]), len(person)
        tower, popular = self.goods(goods), self.popular(goods).squeeze(1)
        margin = ((tower[:count] - tower[count:]) * self.people(person)).sum(1)
        return margin + popular[:count] - popular[count:]


def _ranked(model: nn.Module, batch) -> torch.Tensor:
    return functional.softplus(-model(*batch)).mean()


def ranking_towers(factor: float = 1.0) -> Task:
    """Ranking by pairs."""
    train, val = _purchases()
    lr = rate("ranking_towers", factor)
    return make(
        "ranking_towers",
        factor,
        model=Towers,
        train_set=train,
        val_set=val,
        loss=_ranked,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        collate=as_is,
    )


globals().update(others(churn_resmlp, ranking_towers))
