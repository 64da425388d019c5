"""How near the user's size a run with a schedule has to stay, by hand and for many runs at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, encode, initial_state
from rlbatch.policy.network import Float32
from rlbatch.policy.size_limits import arrival, near_base
from rlbatch.signals.record import COST_CURVE_SIZES
from rlbatch.testing import simple_signals

FULL = np.log2(8.0 + COST_CURVE_SIZES)
HALF_FULL = np.log2(64.0 + COST_CURVE_SIZES)
NOT_FULL = np.log2(256.0 + COST_CURVE_SIZES)
PLAN = 6400.0  # samples; the user's size is 64
REMAINING, SINCE = map(OBSERVATION_NAMES.index, ("val_remaining", "since_change"))


def observed(remaining: float | np.ndarray = -1.0, *, chunks: float | np.ndarray = 8.0) -> Float32:
    """Return observations with nothing but what says how far the target and the last change are.

    Args:
        remaining: log2 of the e-folds of cost to the target, over 8.
        chunks: Since the batch size changed.
    """
    made = np.zeros((*np.shape(remaining), OBSERVATION_SIZE), dtype=np.float32)
    made[..., REMAINING] = remaining
    made[..., SINCE] = np.minimum(chunks, 8.0) / 8.0
    return made


@pytest.mark.parametrize(
    ("wanted", "changes", "change"),
    [
        # In the first tenth at the user's size.
        (3.0, {"total_samples": 320.0}, 0.0),
        (-3.0, {"total_samples": 320.0}, 0.0),
        (1.0, {"total_samples": 320.0, "batch_size": 8.0}, 3.0),
        (-1.0, {"total_samples": 320.0, "batch_size": 512.0}, -3.0),
        # Then twice it, from a quarter on up to eight times, and late in the plan the user's.
        (3.0, {"total_samples": 640.0}, 1.0),
        (-3.0, {"total_samples": 640.0}, -3.0),
        (4.0, {"total_samples": 1600.0}, 3.0),
        (0.0, {"total_samples": 3200.0, "batch_size": 1024.0}, -1.0),
        (3.0, {"total_samples": 4800.0}, 0.0),
        (3.0, {"total_samples": 7000.0}, 3.0),  # the plan is over
        # Nobody said how long the schedule is: it is seen while it moves.
        (3.0, {"planned_samples": np.nan}, 3.0),
        (3.0, {"planned_samples": np.nan, "schedule_factor": 0.9}, 1.0),
        (-3.0, {"planned_samples": np.nan, "schedule_factor": 0.9}, -3.0),
        # A step of 128 costs nearly twice one of 64: told, or half known and half guessed. To save
        # a quarter of a sample's cost is not enough either.
        (3.0, {"total_samples": 640.0, "step_cost_curve": HALF_FULL}, 0.0),
        (3.0, {"total_samples": 640.0, "step_cost_curve": FULL}, 0.0),
        (-3.0, {"total_samples": 320.0, "step_cost_curve": FULL}, -1.0),
        (-3.0, {"total_samples": 320.0, "step_cost_curve": HALF_FULL}, 0.0),
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
    given = {"planned_samples": PLAN, "step_cost_curve": NOT_FULL, **changes}
    signals = simple_signals(**given)
    assert float(near_base(np.asarray(wanted), observed(), signals)) == change


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
    seen = observed(rng.uniform(-0.5, 0.5, count), chunks=rng.integers(0, 12, count))
    many = near_base(wanted, seen, simple_signals(**changes))
    alone = [
        near_base(
            wanted[i],
            seen[i],
            simple_signals(**{key: value[i] for key, value in changes.items()}),
        )
        for i in range(count)
    ]
    np.testing.assert_array_equal(many, alone)
    assert np.any(many != wanted)


def test_what_is_common_to_many_runs_need_not_be_repeated() -> None:
    curves = np.stack([FULL, NOT_FULL])
    common: dict[str, Any] = {"planned_samples": PLAN, "total_samples": 1000.0}
    np.testing.assert_array_equal(
        near_base(np.asarray(3.0), observed(), simple_signals(step_cost_curve=curves, **common)),
        [0.0, 1.0],
    )
    common["step_cost_curve"] = NOT_FULL
    sizes = np.array([64.0, 128.0])
    np.testing.assert_array_equal(
        near_base(np.asarray(3.0), observed(), simple_signals(base_batch_size=sizes, **common)),
        [1.0, 2.0],
    )


def test_arrival_follows_a_power_law_of_the_samples() -> None:
    # loss = (samples / 1000)^-0.5, so that 0.2 is reached after 25,000 samples, of 50,000.
    state, seen, signals = initial_state(), observed(), simple_signals()
    for chunk in range(1, 60):
        samples = 640.0 * chunk
        loss = (samples / 1000.0) ** -0.5
        signals = simple_signals(
            **{"total_samples": samples, "total_cost": 20.0 * chunk, "total_steps": 10.0 * chunk},
            **{"val_loss": loss, "train_loss": loss, "target_loss": 0.2, "planned_samples": 5e4},
        )
        seen, state = encode(signals, state)
        if samples > 12_000.0:
            break
    assert float(arrival(seen, signals)) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("done", "batch_size", "share", "change"),
    [
        # With half of the plan to go, 0.15 of it is time for the target at this size, two thirds
        # of that where it is to be doubled, four ninths where it is to be four times.
        (0.5, 128.0, 0.64, 0.0),
        (0.5, 128.0, 0.66, -1.0),
        (0.5, 256.0, 0.66, -1.0),
        (0.5, 256.0, 0.74, -2.0),
        (0.5, 64.0, 0.61, 0.0),
        (0.5, 64.0, 0.59, 1.0),
        (0.5, 64.0, 0.57, 1.0),
        (0.5, 64.0, 0.56, 2.0),
        # Earlier such a guess is too early: at 0.3 what counts is 0.59, not 0.65.
        (0.3, 128.0, 0.58, 0.0),
        (0.3, 128.0, 0.60, -1.0),
        (0.3, 64.0, 0.50, 0.0),
        (0.3, 64.0, 0.49, 1.0),
        # Before a quarter of the plan it is not asked for.
        (0.2, 128.0, 0.99, 0.0),
    ],
)
def test_a_run_grows_as_far_as_its_target_still_comes_in_time(
    done: float, batch_size: float, share: float, change: float
) -> None:
    # A step of any size costs 1, and the run was at the user's size until its last chunk.
    steps = PLAN * done / 64.0
    signals = simple_signals(
        **{"planned_samples": PLAN, "total_samples": PLAN * done, "batch_size": batch_size},
        **{"total_cost": steps, "chunk_cost": 10.0, "step_cost_curve": 0.0 * COST_CURVE_SIZES},
    )
    left = PLAN * (share - done) / batch_size  # steps
    remaining = np.log2(np.log1p(left / steps)) / 8.0
    assert float(arrival(observed(remaining), signals)) == pytest.approx(share, rel=1e-4)
    assert float(near_base(np.asarray(3.0), observed(remaining), signals)) == change


@pytest.mark.parametrize(
    ("done", "chunks", "change"),
    [
        (0.5, 0.0, 0.0),
        (0.5, 4.0, 0.0),
        (0.5, 5.0, 3.0),  # of 64 samples: a twentieth of the plan
        (0.2, 0.0, 1.0),
        (1.1, 0.0, 3.0),
    ],
)
def test_a_size_is_kept_for_a_twentieth_of_the_plan(
    done: float, chunks: float, change: float
) -> None:
    given: dict[str, Any] = {"planned_samples": PLAN, "total_samples": PLAN * done, "steps": 1.0}
    signals = simple_signals(**given, step_cost_curve=NOT_FULL)
    assert float(near_base(np.asarray(3.0), observed(chunks=chunks), signals)) == change


def test_a_size_is_kept_for_eight_chunks_where_they_are_short() -> None:
    given: dict[str, Any] = {"planned_samples": 1e9, "total_samples": 5e8, "steps": 1.0}
    signals = simple_signals(**given, step_cost_curve=NOT_FULL)
    changes = [
        float(near_base(np.asarray(3.0), observed(chunks=chunks), signals)) for chunks in (7.0, 8.0)
    ]
    assert changes == [0.0, 3.0]


def test_a_chunk_without_a_step_says_nothing_of_what_is_left() -> None:
    common = {"planned_samples": PLAN, "total_samples": 0.5 * PLAN, "total_steps": 50.0}
    signals = simple_signals(steps=0.0, chunk_cost=0.0, **common)
    assert float(arrival(observed(), signals)) > 1.0  # not known, so not early
    assert float(near_base(np.asarray(3.0), observed(), signals)) == 0.0
