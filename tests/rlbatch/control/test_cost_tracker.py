"""What the tracker counts, on a clock that the test sets."""

from __future__ import annotations

import numpy as np
import pytest

from rlbatch.control.config import ControllerConfig
from rlbatch.control.cost_tracker import CostTracker
from rlbatch.signals.record import COST_CURVE_SIZES


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def chunk(
    tracker: CostTracker, clock: Clock, batch_size: int, seconds: float, steps: int = 4
) -> None:
    tracker.begin_chunk()
    for _ in range(steps):
        clock.now += seconds
        tracker.step(batch_size)
    tracker.end_chunk(batch_size, steps)


def test_wall_seconds_leave_pauses_out_and_teach_the_line() -> None:
    clock = Clock()
    tracker = CostTracker(ControllerConfig(), clock)
    clock.now += 50  # before the first batch
    tracker.resume()
    chunk(tracker, clock, 8, 0.9)
    tracker.pause()
    clock.now += 1000  # a validation
    tracker.resume()
    clock.now += 5  # batches under way: they cost, and teach nothing
    chunk(tracker, clock, 32, 3.3)
    assert tracker.total == pytest.approx(4 * 0.9 + 5 + 4 * 3.3)
    curve, known = tracker.curve()
    assert known == 1.0  # 0.1 + 0.1 B, over two octaves
    np.testing.assert_allclose(2**curve, 0.1 + 0.1 * COST_CURVE_SIZES, rtol=1e-6)


def test_a_state_continues() -> None:
    clock = Clock()
    first, second = (CostTracker(ControllerConfig(), clock) for _ in range(2))
    first.resume()
    chunk(first, clock, 8, 1.0)
    second.load_state_dict(first.state_dict())
    assert second.total == first.total
    np.testing.assert_array_equal(second.curve()[0], first.curve()[0])


def test_samples_and_given_step_times_need_no_clock() -> None:
    clock = Clock()
    samples = CostTracker(ControllerConfig(cost="samples"), clock)
    given = CostTracker(ControllerConfig(step_seconds=lambda b: 1e-3 + 1e-4 * np.asarray(b)), clock)
    for tracker in (samples, given):
        tracker.resume()
        chunk(tracker, clock, 16, 7.0)
    assert samples.total == 64
    assert given.total == pytest.approx(4 * 2.6e-3)
    assert samples.curve()[1] == given.curve()[1] == 1.0
    np.testing.assert_allclose(2 ** samples.curve()[0], COST_CURVE_SIZES)
    np.testing.assert_allclose(2 ** given.curve()[0], 1e-3 + 1e-4 * COST_CURVE_SIZES)
