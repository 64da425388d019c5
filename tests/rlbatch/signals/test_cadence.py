"""The cadence against slow counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbatch.signals.cadence import (
    FIRST_MEASURED,
    chunk_steps,
    is_measured,
    measured_among,
    next_measured,
)


def _chunks(total: int, **limits: float) -> list[int]:
    chunks: list[int] = []
    while sum(chunks) < total:
        chunks.append(int(chunk_steps(sum(chunks), **limits)))
    return chunks


def test_chunks_begin_with_one_step_and_grow_with_the_run() -> None:
    chunks = _chunks(500, minimum=4, growth=0.1, maximum=200)
    assert chunks[:8] == [1, 1, 2, 3, 4, 4, 4, 4]
    assert chunks == sorted(chunks)
    assert chunks[-1] == 46  # a tenth of the 461 steps before
    assert 30 <= len(chunks) <= 50


@pytest.mark.parametrize(("minimum", "maximum"), [(1, 1), (1, 200), (4, 4), (7, 20)])
def test_chunks_stay_within_their_limits(minimum: int, maximum: int) -> None:
    chunks = _chunks(3000, minimum=minimum, growth=0.1, maximum=maximum)
    assert max(chunks) <= maximum
    done = 0
    for chunk in chunks:
        assert done < 2 * minimum or chunk >= minimum
        done += chunk


def test_chunks_of_many_runs_at_once() -> None:
    done, minimum = np.arange(300.0), np.tile([2.0, 5.0, 8.0], 100)
    together = chunk_steps(done, minimum, 0.08)
    assert together.tolist() == [
        float(chunk_steps(d, m, 0.08)) for d, m in zip(done, minimum, strict=True)
    ]


@settings(deadline=None)
@given(st.integers(0, 5000), st.floats(0.0, 5.0))
def test_the_count_is_the_number_of_measured_steps(steps: int, rate: float) -> None:
    counted = sum(is_measured(step, rate) for step in range(steps))
    assert counted == measured_among(steps, rate)
    assert counted <= rate * math.sqrt(steps)


def test_everything_or_nothing_may_be_measured() -> None:
    assert not any(is_measured(step, 0.0) for step in range(50))
    assert [is_measured(step, math.inf) for step in range(5)] == [False] * FIRST_MEASURED + [
        True
    ] * (5 - FIRST_MEASURED)


@pytest.mark.parametrize("rate", [0.05, 0.6, 1.0, 3.0, 40.0, math.inf])
@pytest.mark.parametrize("start", [0, 3 * 10**7])
def test_the_next_measured_step_is_the_first_of_all_that_are_asked(rate: float, start: int) -> None:
    steps = range(start, start + 3000)
    measured = [step for step in steps if is_measured(step, rate)]
    for step in [start, start + 1, start + 2, *measured[:20], *(s + 1 for s in measured[:20])]:
        later = [s for s in measured if s >= step]
        found = next_measured(step, rate)
        assert found == later[0] if later else found > steps[-1]


def test_a_run_that_measures_nothing_has_no_next_measured_step() -> None:
    assert next_measured(0, 0.0) == next_measured(10**6, 0.0) == math.inf
    assert next_measured(5, 1e-300) == math.inf
