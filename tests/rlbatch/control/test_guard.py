"""The rule by which a chunk counts as damage."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlbatch.control.guard import GuardConfig, GuardState, judge
from rlbatch.errors import ConfigurationError


def feed(losses: list[float], **changes: Any) -> list[bool]:
    state, verdicts = GuardState(), []
    for index, loss in enumerate(losses):
        values: dict[str, Any] = {
            "batch_size": 2**index,
            "steps": 4,
            "train_loss": loss,
            "train_loss_std": 0.0,
            "nonfinite_losses": int(not math.isfinite(loss)),
        }
        damaged, state = judge(state, GuardConfig(), **{**values, **changes})
        verdicts.append(damaged)
    return verdicts


def test_damage_is_a_multiple_of_the_lowest_loss() -> None:
    assert feed([1.0, 0.5, 1.4, 1.6, 0.9]) == [False, False, False, True, False]


def test_neither_damage_lowers_the_bar_nor_is_noise_damage() -> None:
    assert feed([1.0, 3.5, 3.5]) == [False, True, True]
    assert feed([1.0, 3.5], train_loss_std=4.0) == [False, False]
    assert feed([1.0, 3.5], train_loss_std=0.5) == [False, True]


def test_what_is_not_finite_is_damage_and_negative_losses_have_no_ratio() -> None:
    assert feed([math.nan, 1.0]) == [True, False]
    assert feed([-1.0, 5.0, -3.0, 9.0]) == [False] * 4


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="loss_ratio > 1"):
        GuardConfig(loss_ratio=1.0)
