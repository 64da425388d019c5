"""A loss that is meant to rise is no damage; one that explodes after a change is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.testing import ScriptedPolicy

SAMPLES, BASE, EPOCHS = 512, 16, 16
Term = Callable[[int], float]


def ramp(step: int) -> float:
    return min(max(step - 64, 0) / 200.0, 1.0) * 5.0


def slow_ramp(step: int) -> float:
    return step / 500.0


def switched_on(step: int) -> float:
    return 10.0 * (step >= 100)


def train(term: Term, policy: Any, **settings: Any) -> Any:
    """Train with a second term whose weight is `term` of the step; return the controller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=BASE, policy=policy, cost="samples", **settings
    )
    x = torch.randn(SAMPLES, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True) * 0.5)
    loader = controller.loader(DataLoader(data, BASE, shuffle=True))
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            # Something that no training makes smaller, as the entropy of a fixed distribution.
            loss = loss + term(controller.steps) * (1.0 + 0.01 * model(x).square().mean())
            controller.backward(loss)
            controller.step()
    return controller


@pytest.mark.parametrize("policy", ["default", "noise-scale:theta=1", "goodput"])
@pytest.mark.parametrize("term", [ramp, slow_ramp])
def test_a_term_that_is_phased_in_is_not_rolled_back(term: Term, policy: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller = train(term, policy)
    assert controller.components["rollbacks"] == 0
    assert controller.components["enabled"]


@pytest.mark.parametrize("script", [(0.3, -0.3) * 40, (0.5, 0.0, 0.0) * 2 + (0.0,) * 50])
@pytest.mark.parametrize("term", [ramp, slow_ramp, switched_on])
def test_nor_does_it_end_a_run_of_many_changes(term: Term, script: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller = train(term, ScriptedPolicy(script))
    assert controller.components["rollbacks"] == 0
    assert controller.components["enabled"]


def test_an_explosion_after_a_change_is_rolled_back() -> None:
    with pytest.warns(RuntimeWarning, match="after the batch size had changed"):
        controller = train(
            lambda step: 0.0,
            ScriptedPolicy((0.0,) * 4 + (4.0,)),
            lr_coupling="linear",
        )
    assert controller.components["rollbacks"] >= 1


def test_a_change_that_explodes_each_time_switches_the_controller_off() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller = train(
            lambda step: 0.0, ScriptedPolicy((0.0,) * 4 + (4.0,) * 40), lr_coupling="linear"
        )
    assert controller.components["rollbacks"] == 4
    assert not controller.components["enabled"]


@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_losses_whose_squares_double_precision_does_not_have(scale: float) -> None:
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=4, policy=ScriptedPolicy((1.0, 0.0, -1.0) * 9), cost="samples"
    )
    data = TensorDataset(torch.randn(80, 3).double())
    for (x,) in controller.loader(DataLoader(data, 4)):
        controller.backward(model(x).square().mean() * scale)
        controller.step()
    assert controller.components["rollbacks"] == 0
    assert controller.components["enabled"]
