import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.data.step_plan import plan_step, resize, round_batch_size, share_start
from rlbatch.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((32,), (32,)),
        ((32, 32), (32,)),
        ((33, 32), (17, 16)),
        ((100, 32), (25, 25, 25, 25)),
        ((100, 32, 4), (25,)),
        ((32, None, 1, True), (16, 16)),
        ((7, None, 1, True), (4, 3)),
        ((1, None, 1, True), (1,)),
        ((96, 32, 1, True), (32, 32, 32)),
        ((4, 8, 4, True), (1,)),
    ],
)
def test_known_plans(arguments: tuple[Any, ...], sizes: tuple[int, ...]) -> None:
    assert plan_step(*arguments).sizes == sizes


@given(
    st.integers(1, 300),
    st.none() | st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
)
def test_plans_of_all_ranks_fit_together(
    batch_size: int, limit: int | None, world_size: int, measure: bool
) -> None:
    if batch_size < world_size:
        with pytest.raises(ConfigurationError, match="at least one sample"):
            plan_step(batch_size, limit, world_size, measure)
        return
    plans = [
        plan_step(batch_size, limit, world_size, measure, rank=rank) for rank in range(world_size)
    ]
    assert sum(plan.share for plan in plans) == batch_size
    assert len({len(plan.sizes) for plan in plans}) == 1
    start = 0
    for rank, plan in enumerate(plans):
        assert share_start(batch_size, world_size, rank) == start
        start += plan.share
        assert max(plan.sizes) - min(plan.sizes) <= 1
        assert min(plan.sizes) >= 1
    largest = max(max(plan.sizes) for plan in plans)
    if limit is not None and (limit > 1 or batch_size % world_size == 0):
        assert largest <= limit
    if measure and batch_size >= 2 * world_size:
        assert len(plans[0].sizes) >= 2
    # No more micro-batches than needed.
    needed = 1 if limit is None else math.ceil(math.ceil(batch_size / world_size) / limit)
    assert len(plans[0].sizes) <= max(needed, 2 if measure else 1)


@given(
    st.floats(0, 1e6),
    st.integers(1, 8),
    st.integers(1, 100),
    st.integers(1, 1000),
)
def test_the_nearest_multiple_is_taken(
    size: float, world_size: int, minimum: int, maximum: int
) -> None:
    multiples = [n for n in range(minimum, maximum + 1) if n % world_size == 0]
    if not multiples:
        with pytest.raises(ConfigurationError, match="multiple of the"):
            round_batch_size(size, minimum, maximum, world_size)
        return
    got = round_batch_size(size, minimum, maximum, world_size)
    assert got in multiples
    assert abs(got - size) == min(abs(n - size) for n in multiples)


@given(st.integers(1, 4096), st.floats(-5, 5), st.integers(1, 50), st.integers(50, 5000))
def test_a_change_leads_to_the_nearest_whole_size_within_the_limits(
    size: int, change: float, low: int, high: int
) -> None:
    got, wanted = int(resize(size, change, low, high)), size * 2.0**change
    nearest = min(abs(n - wanted) for n in range(low, high + 1))
    assert abs(got - wanted) <= nearest * (1 + 1e-9)


def test_a_half_goes_to_the_even_size_and_no_number_changes_nothing() -> None:
    sizes, changes = np.array([15, 13, 7, 7, 7]), np.array([-1, -1, np.nan, np.inf, 500.0])
    np.testing.assert_array_equal(resize(sizes, changes, 1, 99), [8, 6, 7, 7, 99])


def test_infinite_sizes_give_the_limits_and_nan_is_refused() -> None:
    assert round_batch_size(math.inf, 4, 100, 3) == 99
    assert round_batch_size(-math.inf, 4, 100, 3) == 6
    with pytest.raises(ConfigurationError, match="NaN"):
        round_batch_size(math.nan, 4, 100, 3)


@pytest.mark.parametrize(
    "arguments", [{"micro_batch_size": 0}, {"rank": 1}, {"rank": -1}, {"world_size": 0}]
)
def test_bad_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="Expected"):
        plan_step(8, **arguments)  # pyright: ignore[reportArgumentType]
