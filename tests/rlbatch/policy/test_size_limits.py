"""How near the user's size a run with a schedule has to stay, by hand and for many runs at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlbatch.policy.size_limits import near_base
from rlbatch.signals.record import COST_CURVE_SIZES
from rlbatch.testing import simple_signals

FULL = np.log2(8.0 + COST_CURVE_SIZES)
PLAN = 6400.0  # samples; the user's size is 64


@pytest.mark.parametrize(
    ("wanted", "changes", "change"),
    [
        # In the first tenth at the user's size.
        (3.0, {"total_samples": 320.0}, 0.0),
        (-3.0, {"total_samples": 320.0}, 0.0),
        (1.0, {"total_samples": 320.0, "batch_size": 8.0}, 3.0),
        (-1.0, {"total_samples": 320.0, "batch_size": 512.0}, -3.0),
        # Then twice it, from the middle on four times, and at last what the policy likes.
        (3.0, {"total_samples": 640.0}, 1.0),
        (-3.0, {"total_samples": 640.0}, -3.0),
        (3.0, {"total_samples": 3200.0}, 2.0),
        (0.0, {"total_samples": 3200.0, "batch_size": 512.0}, -1.0),
        (3.0, {"total_samples": 4800.0}, 3.0),
        (3.0, {"total_samples": 7000.0}, 3.0),  # the plan is over
        # Nobody said how long the schedule is: it is seen while it moves.
        (3.0, {"planned_samples": np.nan}, 3.0),
        (3.0, {"planned_samples": np.nan, "schedule_factor": 0.9}, 1.0),
        (-3.0, {"planned_samples": np.nan, "schedule_factor": 0.9}, -3.0),
        # A step of 128 costs nearly twice one of 64: told, or half known and half guessed.
        (3.0, {"total_samples": 640.0, "step_cost_curve": FULL}, 0.0),
        (-3.0, {"total_samples": 320.0, "step_cost_curve": FULL}, -1.0),
        (0.0, {"total_samples": 640.0, "step_cost_curve": FULL, "batch_size": 128.0}, -1.0),
        (3.0, {"total_samples": 640.0, "step_cost_curve": FULL, "step_cost_known": 0.5}, 0.0),
        (3.0, {"total_samples": 640.0, "step_cost_curve": FULL, "step_cost_known": 0.0}, 1.0),
        # A run of so many samples has no target that it could miss.
        (3.0, {"total_samples": 320.0, "target_loss": np.nan}, 3.0),
        (-3.0, {"total_samples": 320.0, "target_loss": np.nan}, -3.0),
    ],
)
def test_sizes_grow_with_the_schedule(
    wanted: float, changes: dict[str, Any], change: float
) -> None:
    signals = simple_signals(**{"planned_samples": PLAN, **changes})
    assert float(near_base(np.asarray(wanted), signals)) == change


def test_each_of_many_runs_is_limited_as_it_is_alone() -> None:
    rng = np.random.default_rng(0)
    count = 200
    changes = {
        "batch_size": 2.0 ** rng.integers(2, 12, count),
        "total_samples": PLAN * rng.uniform(0.0, 1.2, count),
        "planned_samples": np.where(rng.random(count) < 0.3, np.nan, PLAN),
        "schedule_factor": np.where(rng.random(count) < 0.5, 1.0, 0.3),
        "target_loss": np.where(rng.random(count) < 0.2, np.nan, 0.1),
    }
    wanted = rng.integers(-3, 4, count).astype(np.float64)
    many = near_base(wanted, simple_signals(**changes))
    alone = [
        near_base(wanted[i], simple_signals(**{key: value[i] for key, value in changes.items()}))
        for i in range(count)
    ]
    np.testing.assert_array_equal(many, alone)
    assert np.any(many != wanted)


def test_what_is_common_to_many_runs_need_not_be_repeated() -> None:
    curves = np.stack([FULL, simple_signals().step_cost_curve])
    common = {"planned_samples": PLAN, "total_samples": 1000.0}
    np.testing.assert_array_equal(
        near_base(np.asarray(3.0), simple_signals(step_cost_curve=curves, **common)), [0.0, 1.0]
    )
    sizes = np.array([64.0, 128.0])
    np.testing.assert_array_equal(
        near_base(np.asarray(3.0), simple_signals(base_batch_size=sizes, **common)), [1.0, 2.0]
    )
