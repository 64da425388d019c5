"""The rule by which a chunk counts as damage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlbatch.control.guard import ChunkLoss, GuardConfig, GuardState, judge
from rlbatch.errors import ConfigurationError


def feed(losses: list[float], std: float = 0.0, batch_size: int | None = None) -> list[bool]:
    state, verdicts = GuardState(), []
    for index, loss in enumerate(losses):
        size = 2 ** (index + 10) if batch_size is None else batch_size
        chunk = ChunkLoss(size, 4, loss, std, nonfinite=int(not math.isfinite(loss)))
        damaged, state = judge(state, GuardConfig(), chunk)
        verdicts.append(damaged)
    return verdicts


def test_damage_is_a_multiple_of_the_lowest_loss() -> None:
    assert feed([1.0, 3.1, 0.9]) == [False, True, False]


def test_what_was_rolled_back_does_not_lower_the_bar() -> None:
    assert feed([1.0, 3.5, 3.5]) == [False, True, True]


def test_the_noise_of_small_batches_is_no_damage_and_an_explosion_is() -> None:
    # Four batches of one sample: their mean varies by 3 / 2 when one loss varies by 3.
    assert feed([1.0, 3.5], std=3.0, batch_size=1) == [False, False]
    state = judge(GuardState(), GuardConfig(), ChunkLoss(16, 4, 1.0, 0.1))[1]
    assert judge(state, GuardConfig(), ChunkLoss(16, 4, 14.0, 24.0))[0]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_stationary_losses_with_heavy_tails_are_left_alone(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(50):
        state = GuardState()
        for _ in range(40):
            losses = rng.lognormal(0.0, 1.0, (8, batch_size)).mean(1)
            chunk = ChunkLoss(batch_size, 8, float(losses.mean()), float(losses.std(ddof=1)))
            damaged, state = judge(state, GuardConfig(), chunk)
            alarms += damaged
            assert not state.diverged
    assert alarms <= 10  # of 2,000 chunks


def test_a_run_is_given_up() -> None:
    state = judge(GuardState(), GuardConfig(), ChunkLoss(16, 4, 1.0, 0.0))[1]

    def given_up(changes: list[bool]) -> list[bool]:
        current, flags = state, []
        for changed in changes:
            chunk = ChunkLoss(64, 4, math.nan, 0.0, nonfinite=4, changed=changed)
            current = judge(current, GuardConfig(), chunk)[1]
            flags.append(current.diverged)
        return flags

    assert given_up([False, False]) == [False, True]
    assert given_up([True, False, True]) == [False, False, False]
    assert given_up([True, False, False]) == [False, False, True]
    assert given_up([True] * 4) == [False, False, False, True]


def test_what_is_not_finite_is_damage_and_negative_losses_have_no_ratio() -> None:
    assert feed([math.nan, 1.0]) == [True, False]
    assert feed([-1.0, 5.0, -3.0, 9.0]) == [False] * 4


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="loss_ratio > 1"):
        GuardConfig(loss_ratio=1.0)
