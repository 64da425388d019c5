"""A snapshot brings back exactly what training changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import ASGD, SGD, Adagrad, AdamW, NAdam, Optimizer

from rlbatch.control.snapshot import Snapshot


def work(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1),
        lambda p: SGD(p, lr=0.1, momentum=0.9),
        lambda p: AdamW(p, amsgrad=True),
        NAdam,
        Adagrad,
        ASGD,
    ],
)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_training_goes_on_as_if_the_chunk_had_not_been(
    make: Callable[[Any], Optimizer], steps_before: int
) -> None:
    results: list[dict[str, Any]] = []
    for damaged in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        optimizer = make(model.parameters())
        snapshot = Snapshot(model, optimizer)
        snapshot.take()  # an earlier one, to be written over
        work(model, optimizer, steps_before, seed=1)
        snapshot.take()
        if damaged:
            work(model, optimizer, 4, seed=2)
            snapshot.restore()
            work(model, optimizer, 2, seed=2)
            snapshot.restore()  # more than once
        work(model, optimizer, 3, seed=3)
        results.append({**model.state_dict(), **_flat(optimizer)})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=0)


def _flat(optimizer: Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, row in state.items() for key, value in row.items()}
