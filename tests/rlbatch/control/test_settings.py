"""Settings that mean nothing are refused where they are given, in a sentence that helps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch import BatchController, Cadence, ControllerConfig, GuardConfig, Limits
from rlbatch.agents.rules.fixed import Fixed
from rlbatch.control.settings import Settings, make_config
from rlbatch.errors import ConfigurationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_loss": -1.0}, "target_loss must be a positive"),
        ({"target_loss": math.nan}, "target_loss must be a positive"),
        ({"target_loss": "0.1"}, "target_loss must be a positive.*got '0.1'"),
        ({"target_loss": True}, "target_loss must be a positive"),
        ({"budget": -5}, "budget must be a positive"),
        ({"epochs": "3"}, "epochs must be a positive.*got '3'"),
        ({"target_loss": 0.1, "budget": 3.0}, "target_loss or a budget, got both"),
        ({"max_batch_sise": 64}, "no setting 'max_batch_sise'. Did you mean max_batch_size"),
        ({"qqq": 1}, "no setting 'qqq'. Known: "),
        ({"min_batch_size": "8"}, "min_batch_size must be a whole number of samples"),
        ({"min_batch_size": 64, "max_batch_size": 8}, "min_batch_size must be at most"),
        ({"micro_batch_size": 2.5}, "micro_batch_size must be a whole number"),
        ({"memory_limit": "1GB"}, "memory_limit must be a number of bytes"),
        ({"min_chunk_steps": 300}, "min_chunk_steps, max_chunk_steps"),
        ({"cooldown": -1}, "cooldown must be a whole number"),
        ({"limits": Limits(), "max_batch_size": 64}, "either limits or its single settings"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_config(None, settings)


def test_single_settings_make_the_same_configuration_as_its_parts() -> None:
    whole = ControllerConfig(
        limits=Limits(min_batch_size=4, max_batch_size=512, micro_batch_size=64),
        cadence=Cadence(minimum=8, first=2),
        guard=GuardConfig(loss_ratio=5.0),
        target_loss=0.5,
    )

    assert whole == make_config(
        None,
        {
            **{"min_batch_size": 4, "max_batch_size": 512, "micro_batch_size": 64},
            **{"min_chunk_steps": 8, "first_chunk_steps": 2},
            **{"guard": GuardConfig(loss_ratio=5.0), "target_loss": 0.5},
        },
    )


def test_every_field_can_be_given_as_a_keyword() -> None:
    fields = set(ControllerConfig.__dataclass_fields__)

    assert fields <= set(Settings.__annotations__)
    assert set(Limits.__dataclass_fields__) <= set(Settings.__annotations__)


@pytest.mark.parametrize("batch_size", ["32", 0, 2.0, True])
def test_a_batch_size_is_a_whole_number(batch_size: Any) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(ConfigurationError, match="batch_size must be a whole number of samples"):
        BatchController(model, optimizer, batch_size=batch_size)


def _run(epochs: int, state: Any = None, **settings: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.randn(40, 2), torch.randn(40, 1))
    settings = {"policy": "fixed", **settings}
    controller = BatchController(model, optimizer, batch_size=8, **settings)
    loader = controller.loader(DataLoader(data, batch_size=8))
    if state is not None:
        controller.load_state_dict(state)
    for _ in range(epochs):
        for x, y in loader:
            controller.backward(nn.functional.mse_loss(model(x), y))
            controller.step()
    return controller.state_dict()


def test_a_target_without_validations_is_noticed_after_the_first_epoch() -> None:
    _run(1, target_loss=0.5)
    with pytest.warns(RuntimeWarning, match=r"report_validation\(loss\)"):
        _run(2, target_loss=0.5)


def test_a_resumed_run_is_not_said_to_lack_the_validations_of_its_first_epoch() -> None:
    state = _run(1, target_loss=0.5)

    _run(1, state, target_loss=0.5)  # a warning would be an error


def test_a_fixed_size_beyond_the_limits_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="wants batch size 99999, and sizes from 8 to 40"):
        _run(1, policy=Fixed(99999))
