"""Objectives and the spacing of decisions and validations."""

from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.envs.objectives import Cadence, Objective, disutility
from rlbatch.errors import ConfigurationError

# Binary fractions: growth x steps is exact in floating point, and so comparable with fractions.
shares = st.integers(0, 64).map(lambda number: number / 64)


@st.composite
def cadences(draw: st.DrawFn) -> Cadence:
    minimum = draw(st.integers(1, 20))
    return Cadence(
        first=draw(st.integers(1, minimum)),
        minimum=minimum,
        growth=draw(shares),
        maximum=draw(st.integers(minimum, 300)),
        validation_growth=draw(shares),
    )


def chunk_by_hand(cadence: Cadence, steps_done: int) -> int:
    """A few steps to begin with, half a step more a step done, then a share of the run so far."""
    beginning = min(cadence.minimum, cadence.first + steps_done // 2)
    share = Fraction(cadence.growth) * steps_done
    return min(max(beginning, share.numerator // share.denominator), cadence.maximum)


@given(cadence=cadences(), steps_done=st.integers(0, 100_000))
def test_chunks_grow_with_the_run_between_their_limits(cadence: Cadence, steps_done: int) -> None:
    steps = cadence.chunk_steps(steps_done)
    assert isinstance(steps, int)
    assert steps == chunk_by_hand(cadence, steps_done)


@given(cadence=cadences(), steps_done=st.integers(0, 100_000))
def test_validations_are_spaced_by_a_share_of_the_steps(cadence: Cadence, steps_done: int) -> None:
    share = Fraction(cadence.validation_growth) * steps_done
    assert cadence.validation_steps(steps_done) == max(1, share.numerator // share.denominator)


def decisions(cadence: Cadence, length: int) -> int:
    count = done = 0
    while done < length:
        done += cadence.chunk_steps(done)
        count += 1
    return count


def test_short_and_long_runs_both_get_dozens_of_decisions() -> None:
    cadence = Cadence()
    assert decisions(cadence, 50) == pytest.approx(13, abs=3)
    # After about 40 steps a chunk is a tenth of the run: log(length / 40) / log(1.1) chunks more.
    after_the_start = decisions(cadence, 2_000) - decisions(cadence, 40)
    assert after_the_start == pytest.approx(np.log(2_000 / 40) / np.log(1.1), rel=0.1)
    # From 2,000 steps on the longest chunk counts.
    assert decisions(cadence, 50_000) - decisions(cadence, 2_000) == pytest.approx(240, abs=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": 0},
        {"first": 5},
        {"minimum": 0},
        {"minimum": 5, "maximum": 4},
        {"growth": -0.1},
        {"growth": nan},
        {"growth": inf},
        {"validation_growth": -0.1},
        {"validation_growth": nan},
        {"validation_growth": inf},
    ],
)
def test_impossible_cadences_are_refused_and_the_value_is_named(wrong: dict[str, float]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigurationError, match=rf"cadence.*{name}={value}\b"):
        Cadence(**wrong)  # type: ignore[arg-type]


def test_an_objective_is_of_the_kind_that_it_names() -> None:
    assert Objective(target_loss=0.1).kind == "target"
    assert Objective(target_loss=0.1, budget=3.0).kind == "target"
    assert Objective(budget=3.0).kind == "budget"
    assert Objective(budget=3.0).weights.seconds == 1.0
    assert Objective(planned_samples=300.0).kind == "epochs"
    assert Objective(planned_samples=300.0, budget=3.0).kind == "epochs"


def test_an_objective_needs_an_end() -> None:
    with pytest.raises(ConfigurationError, match="needs a target_loss, a budget or planned"):
        Objective()


def test_a_target_ends_a_run_and_a_plan_does_another() -> None:
    with pytest.raises(ConfigurationError, match="target_loss or planned_samples, got both"):
        Objective(target_loss=0.1, planned_samples=300.0)


@pytest.mark.parametrize("name", ["target_loss", "budget", "planned_samples"])
@pytest.mark.parametrize("value", [0.0, -1.0, nan, inf, -inf])
def test_ends_that_cannot_be_met_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be positive and finite, got"):
        Objective(**{"budget": 1.0, name: value})  # type: ignore[arg-type]


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_more_cost_is_worse_and_beyond_the_reference_factors_count(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert disutility(low) <= disutility(high)
    if low >= 1.0:
        assert disutility(high) - disutility(low) == pytest.approx(np.log(high / low))
    if high <= 1.0:
        assert disutility(high) - disutility(low) == pytest.approx(high - low)


def test_disutility_takes_arrays_and_has_no_corner_at_the_reference() -> None:
    np.testing.assert_allclose(
        disutility(np.array([[0.5, 1.0], [np.e, np.e**2]])), [[0.5, 1], [2, 3]]
    )
    below, above = 1.0 - disutility(1.0 - 1e-6), disutility(1.0 + 1e-6) - 1.0
    assert below == pytest.approx(above, rel=1e-5)
