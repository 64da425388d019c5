"""One step of a task shows what is wrong with its functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rlbatch.envs.task import Task
from rlbatch.envs.task_check import check_task
from rlbatch.errors import ConfigurationError
from tests.agents.evaluate.cheap_task import make, scheduled


@pytest.mark.parametrize("task", [make(), scheduled()])
def test_a_good_task_is_passed_and_nothing_else_changes(task: Task) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    check_task(task)
    assert torch.equal(torch.random.get_rng_state(), before)


def per_sample(model: nn.Module, batch: list[Any]) -> Any:
    return (model(batch[0]) - batch[1]).square().squeeze(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": per_sample}, r"scalar tensor.* got a tensor of shape \(8,\)"),
        ({"loss": lambda model, batch: 1.0}, "scalar tensor.* got float"),
        ({"loss": lambda model, batch: per_sample(model, batch).mean().log() * 0 / 0}, "nan"),
        ({"loss": lambda model, batch: per_sample(model, batch).mean().detach()}, "not depend"),
        ({"model": lambda: "a model"}, "torch.nn.Module, got str"),
        ({"optimizer": lambda parameters: None}, "Optimizer, got NoneType"),
        ({"scheduler": lambda optimizer, steps: 0.5}, "schedule, got float"),
    ],
)
def test_what_a_function_returns_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_task(replace(make(), **change))


def test_what_a_function_raises_is_passed_on() -> None:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Any:
        return batch["nowhere"]

    with pytest.raises(TypeError, match="indices must be integers"):
        check_task(replace(make(), loss=loss))
