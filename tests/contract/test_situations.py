"""The situations of a plain loop, in one process on torch alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import rlbatch
from rlbatch.control.settings import make_config
from rlbatch.control.users_parts import in_users_parts
from tests.contract import situations
from tests.contract.situations import Host


class Alone(Host):
    """One process on torch alone; most of its situations have tests of their own."""

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        return rlbatch.BatchController(model, optimizer, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "a_chained_schedule",
        "a_dataset_that_grows",
        "a_schedule_that_begins_late",
        "a_sum_that_grows",
        "gradients_left_over",
        "statistics_in_parts",
        "steps_that_a_scaler_leaves_out",
    ],
)
def test_one_process(name: str) -> None:
    getattr(situations, name)(Alone())


@pytest.mark.slow
def test_a_scaler_that_leaves_it_to_a_fused_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `step` is called for an overflow, too, and looks itself."""
    fused = partial(torch.optim.Adam, lr=0.01, fused=True)
    monkeypatch.setattr(situations, "adam", lambda model: fused(model.parameters()))
    situations.steps_that_a_scaler_leaves_out(Alone())


def test_passes_of_the_users_own_are_not_smaller_for_accumulating() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    config = make_config(None, {})
    with situations.silence():
        assert in_users_parts(config, model, 8, accumulates=False) == config
        own = in_users_parts(config, model, 8, accumulates=True)
        assert own.limits.micro_batch_size == 8
        assert in_users_parts(own, model, 8, accumulates=True) == own
    with pytest.warns(RuntimeWarning, match="batch normalisation then goes over 4"):
        in_users_parts(config.in_parts_of(4), model, 8, accumulates=True)
