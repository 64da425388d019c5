"""The validation loss: the mean over samples, whatever they are batched as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlbatch.envs import validator
from rlbatch.envs.validator import Validator
from tests.envs.test_task import make_task, squared_error


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_samples_weigh_equally_whatever_the_pass_size(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = make_task(), nn.Linear(1, 1)
    inputs, values = task.val_set[:]
    expected = (model(inputs) - values).square().mean().item()
    monkeypatch.setattr(validator, "_BATCH", batch_size)
    assert Validator(task).loss(model) == pytest.approx(expected, rel=1e-5)


def test_the_model_is_evaluated_in_eval_mode_without_gradients() -> None:
    seen: list[bool] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(model.training or torch.is_grad_enabled())
        return squared_error(model, batch)

    model = nn.Linear(1, 1)
    Validator(make_task(loss=loss)).loss(model)
    assert seen == [False]
    assert model.training
