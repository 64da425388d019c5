"""The step-time line against times that were made from a known line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.signals import step_time
from rlbatch.signals.record import COST_CURVE_SIZES


def fitted(observations: Sequence[tuple[int, float]]) -> step_time.StepTimeFit:
    """The line through (batch size, seconds), oldest first."""
    state: step_time.StepTimeState = {}
    for batch_size, seconds in observations:
        state = step_time.observe(state, batch_size, seconds)
    return step_time.fit(state)


def test_a_known_line_is_found_among_outliers() -> None:
    rng = np.random.default_rng(0)
    observations: list[tuple[int, float]] = []
    for size in (32, 64, 128, 512):
        times = (2e-3 + 1e-5 * size) * rng.uniform(0.98, 1.02, size=9)
        times[0] *= 20  # a warm-up chunk
        observations += [(size, float(t)) for t in times]
    line = fitted(observations)
    assert line.known == 1.0
    assert line.fixed_seconds == pytest.approx(2e-3, rel=0.03)
    assert line.sample_seconds == pytest.approx(1e-5, rel=0.05)
    np.testing.assert_allclose(
        line.step_cost_curve(), np.log2(2e-3 + 1e-5 * COST_CURVE_SIZES), atol=0.06
    )


def test_one_size_puts_the_knee_there() -> None:
    line = fitted([(64, 0.5), (64, 0.5)])
    assert line.known == 0.0
    assert line.fixed_seconds == pytest.approx(64 * line.sample_seconds)
    assert float(line.step_seconds(64)) == pytest.approx(0.5)


def test_known_grows_with_the_spread() -> None:
    known = [fitted([(64, 1.0), (size, 1.5)]).known for size in (64, 128, 256, 2048)]
    assert known == [0.0, 0.5, 1.0, 1.0]


def test_nothing_seen_is_a_flat_guess() -> None:
    line = step_time.fit({})
    assert line.known == 0.0
    assert np.ptp(line.step_cost_curve()) == 0.0


def test_useless_times_change_nothing_and_the_state_is_not_modified() -> None:
    state = step_time.observe({}, 8, 0.1)
    for bad in (0.0, -1.0, math.nan, math.inf):
        assert step_time.observe(state, 8, bad) == state
    step_time.observe(state, 8, 0.2)
    assert state == {8: (0.1,)}


def test_a_changed_machine_is_forgotten() -> None:
    observations = [(8, 1.0)] * 50 + [(8, 3.0)] * 9
    assert float(fitted(observations).step_seconds(8)) == pytest.approx(3.0)


@given(st.lists(st.tuples(st.integers(1, 65536), st.floats(1e-6, 1e3)), min_size=1, max_size=30))
def test_the_line_is_always_usable(observations: list[tuple[int, float]]) -> None:
    line = fitted(observations)
    assert line.fixed_seconds >= 0
    assert line.sample_seconds >= 0
    assert line.fixed_seconds + line.sample_seconds > 0
    assert 0 <= line.known <= 1
    curve = line.step_cost_curve()
    assert np.isfinite(curve).all()
    assert (np.diff(curve) >= -1e-12).all()
