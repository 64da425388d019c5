"""A snapshot brings back exactly what training changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


class Adapting(SGD):
    """Counts, and finds its rate, in its parameter groups, as Prodigy and schedule-free ones do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1.0)
        for group in self.param_groups:
            group.update(k=0, d=0.01, weight_sum=torch.zeros(()))

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
            group["d"] *= 1.0 + 0.5 / group["k"]
            group["weight_sum"] += group["d"]
            for parameter in group["params"]:
                parameter.grad.mul_(group["d"] / (1.0 + group["weight_sum"]))
        return super().step(closure)


@pytest.mark.parametrize(
    "make",
    [
        Adapting,
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


def _trained(steps: int) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    # The last layer's state comes first, as after its own first steps.
    optimizer = NAdam([{"params": m.parameters(), "lr": 0.01} for m in model])
    model[2](torch.ones(1, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    work(model, optimizer, steps, seed=1)
    return model, optimizer


@pytest.mark.parametrize("weights_first", [True, False])
def test_a_copy_goes_through_a_checkpoint(weights_first: bool, tmp_path: Path) -> None:
    model, optimizer = _trained(2)
    snapshot = Snapshot(model, optimizer)
    snapshot.take()
    expected = {**model.state_dict(), **_flat(optimizer)}
    expected = {key: torch.as_tensor(value).clone() for key, value in expected.items()}
    work(model, optimizer, 2, seed=2)
    saved = [model.state_dict(), optimizer.state_dict(), snapshot.state_dict()]
    torch.save(saved, tmp_path / "saved.pt")
    work(model, optimizer, 2, seed=3)
    snapshot.take()  # the saved one is its own

    torch.manual_seed(9)
    other = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    another = NAdam([{"params": m.parameters(), "lr": 0.01} for m in other])
    resumed = Snapshot(other, another)
    weights, state, copy = torch.load(tmp_path / "saved.pt", weights_only=True)
    if not weights_first:
        resumed.load_state_dict(copy)
    other.load_state_dict(weights)
    another.load_state_dict(state)
    if weights_first:
        resumed.load_state_dict(copy)
    assert resumed.taken
    for _ in range(2):
        resumed.restore()
        found = {**other.state_dict(), **_flat(another)}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(torch.as_tensor(found[key]), value, rtol=0, atol=0)
        work(other, another, 3, seed=4)


def test_a_copy_of_another_model_is_left_alone() -> None:
    model, optimizer = _trained(1)
    snapshot = Snapshot(model, optimizer)
    snapshot.take()
    larger = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    resumed = Snapshot(larger, SGD(larger.parameters(), lr=0.1))
    resumed.load_state_dict(snapshot.state_dict())
    assert not resumed.taken


def _flat(optimizer: Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, row in state.items() for key, value in row.items()}
