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
        chunk = ChunkLoss(size, 4, loss, std, int(not math.isfinite(loss)), changed=index > 0)
        damaged, state = judge(state, GuardConfig(), chunk)
        verdicts.append(damaged)
    return verdicts


def test_damage_is_a_multiple_of_the_lowest_loss_above_that_of_the_chunk_before() -> None:
    assert feed([1.0, 2.9, 4.8, 0.9]) == [False] * 4
    assert feed([1.0, 2.9, 5.0, 0.9]) == [False, False, True, False]
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


def test_a_loss_that_rises_at_an_unchanged_size_is_no_damage() -> None:
    state, verdicts = GuardState(), []
    for index, loss in enumerate([1.0, 1.0, 1.0, 1.0, 20.0, 20.0, 45.0, 200.0]):
        chunk = ChunkLoss(64, 100, loss, 0.1, changed=index == 7)
        damaged, state = judge(state, GuardConfig(), chunk)
        verdicts.append(damaged)
    # Only the last, after a change, is one: far above the level that had become usual.
    assert verdicts == [False] * 7 + [True]
    assert not state.diverged


def test_a_loss_that_rises_the_same_at_the_old_size_is_no_damage() -> None:
    state = judge(GuardState(), GuardConfig(), ChunkLoss(64, 100, 1.0, 0.1))[1]
    damaged, state = judge(state, GuardConfig(), ChunkLoss(128, 100, 20.0, 0.1, changed=True))
    assert (damaged, state.suspected) == (True, True)
    again, meant = judge(state, GuardConfig(), ChunkLoss(64, 100, 20.0, 0.1))
    assert not again
    assert not judge(meant, GuardConfig(), ChunkLoss(128, 100, 21.0, 0.1, changed=True))[0]
    # And one that does not was damage: the next time counts on.
    calm, known = judge(state, GuardConfig(), ChunkLoss(64, 100, 1.0, 0.1))
    assert (calm, known.consecutive) == (False, 1)
    assert (
        judge(known, GuardConfig(), ChunkLoss(128, 100, 20.0, 0.1, changed=True))[1].consecutive
        == 2
    )


def test_an_explosion_soon_after_a_change_is_damage_also_in_a_later_chunk() -> None:
    state = GuardState()
    for changed, loss in ((False, 1.0), (False, 1.0), (True, 1.2), (False, 1.4)):
        damaged, state = judge(state, GuardConfig(), ChunkLoss(64, 9, loss, 0.1, changed=changed))
        assert not damaged
    assert judge(state, GuardConfig(), ChunkLoss(64, 9, 50.0, 0.1))[0]


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
