from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.agents.search.largest import find_largest


@given(
    st.integers(0, 500),
    st.integers(1, 50),
    st.integers(1, 20_000),
    st.integers(1, 600),
    st.floats(0.0, 0.5),
)
def test_it_is_the_one_that_trying_all_sizes_finds(
    fixed: int, slope: int, limit: int, most: int, margin: float
) -> None:
    asked: list[int] = []

    def needed(size: int) -> int | None:
        asked.append(size)
        value = fixed + slope * size
        return value if value <= limit else None

    found = find_largest(needed, limit, most, margin)

    fitting = [b for b in range(1, most + 1) if fixed + slope * b <= (1 - margin) * limit]
    assert found.size == max(fitting, default=0)
    assert found.bounded == (found.size == most)
    assert len(asked) == len(set(asked))
    # Nothing is run into the wall on purpose: where some sizes fit, the line is known.
    if found.size >= 4:
        assert all(fixed + slope * size <= limit for size in asked)


@given(st.integers(1, 400), st.integers(50, 5000))
def test_steps_in_the_memory_do_not_mislead_it(block: int, limit: int) -> None:
    def needed(size: int) -> int | None:
        value = -(-(10 * size) // block) * block  # allocators hand out blocks
        return value if value <= limit else None

    found = find_largest(needed, limit, 10_000, 0.0)

    assert found.size == 0 or needed(found.size) is not None
    best = max((b for b in range(1, 1000) if needed(b) is not None), default=0)
    assert found.size <= best
    assert found.size >= best // 2


def test_passes_that_take_too_long_are_foretold() -> None:
    asked: list[int] = []

    def needed(size: int) -> int:
        asked.append(size)
        return 100 + 10 * size

    found = find_largest(needed, 10_100, 10**6, 0.0, enough=lambda: asked[-1] >= 16)

    assert max(asked) == 16
    assert (found.size, found.tested, found.needed) == (1000, False, 10_100)


@pytest.mark.parametrize("limit", [5, 11])
def test_nothing_fits(limit: int) -> None:
    assert find_largest(lambda size: None, limit, 100).size == 0
