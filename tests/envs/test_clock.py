"""Clocks: charges of divided steps, and what the wall clock makes of its laps."""

from __future__ import annotations

import numpy as np
import pytest

from rlbatch.envs.clock import (
    MEASURED_SHARE,
    ProfileClock,
    WallClock,
    WatchedProfileClock,
    make_clock,
)
from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost, step_cost_curve

PROFILE = DeviceProfile("p", 1e-3, 1e-4, update_seconds=1e-3, max_micro_batch_size=16)


def test_a_division_that_the_memory_enforces_anyway_is_free() -> None:
    clock = ProfileClock(PROFILE, CostWeights(), 8)
    plain = pytest.approx(float(PROFILE.step_seconds(64)))
    assert clock.lap(64, True) == clock.lap(64, False) == plain
    # 8 samples fit into one pass; the update is not charged again
    extra = MEASURED_SHARE * (float(PROFILE.step_seconds(8)) - 1e-3)
    assert clock.lap(8, True) - clock.lap(8, False) == pytest.approx(extra)


def test_a_mix_is_charged_in_its_units() -> None:
    weights = CostWeights(seconds=0.5, samples=0.2, joules=0.3)
    clock = ProfileClock(PROFILE, weights, 8)
    assert clock.lap(4, False) == pytest.approx(float(step_cost(PROFILE, weights, 4, 8)))
    base_seconds, base_joules = float(PROFILE.step_seconds(8)), float(PROFILE.step_joules(8))
    extra = MEASURED_SHARE * (base_seconds - 1e-3)
    expected = extra * (0.5 / base_seconds + 0.3 * 50.0 / base_joules)
    assert clock.lap(8, True) - clock.lap(8, False) == pytest.approx(expected)


def test_the_wall_clock_prefers_laps_without_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 5.0, 6.0, 7.5, 8.5, 100.0, 103.0])
    monkeypatch.setattr("rlbatch.envs.clock.time.perf_counter", lambda: next(times))
    clock = WallClock()
    clock.start()
    assert [clock.lap(8, measured) for measured in (True, False, True, False)] == [
        5.0,
        1.0,
        1.5,
        1.0,
    ]
    clock.start()  # 91.5 seconds of something else are free
    assert clock.lap(4, True) == 3.0
    clock.end_chunk()
    assert clock.state == {8: (1.0,), 4: (3.0,)}


def test_a_profile_that_has_to_be_learned_costs_the_same() -> None:
    linear = DeviceProfile("l", 1e-3, 1e-4, update_seconds=1e-3, sharpness=1.0)
    told = ProfileClock(linear, CostWeights(), 8)
    clock = WatchedProfileClock(linear, CostWeights(), 8)
    assert clock.curve()[1] == 0.0
    for size in (8, 64):
        for measured in (False, True, False):
            assert clock.lap(size, measured) == told.lap(size, measured)
        clock.end_chunk()
    learned, known = clock.curve()
    assert known == 1.0
    np.testing.assert_allclose(learned, step_cost_curve(linear, CostWeights(), 8), rtol=1e-9)


def test_of_one_size_a_profile_shows_no_more_than_its_cost() -> None:
    clock = WatchedProfileClock(PROFILE, CostWeights(), 8)
    clock.lap(16, False)
    clock.end_chunk()
    curve, known = clock.curve()
    assert known == 0.0
    assert 2.0 ** curve[4] == pytest.approx(clock.lap(16, False))  # log2(16) is 4
    assert 2.0 ** curve[5] == pytest.approx(1.5 * clock.lap(16, False))  # a knee at 16 is the guess


def test_which_clock() -> None:
    assert type(make_clock(PROFILE, CostWeights(), 8)) is ProfileClock
    unknown = make_clock(PROFILE, CostWeights(), 8, curve_known=False)
    assert isinstance(unknown, WatchedProfileClock)
    assert isinstance(make_clock(None, CostWeights(), 8), WallClock)
