from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.summary import best, estimate, front, points, stop_rule
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from tests.agents.search.made_up import outcome

TARGET, EPOCHS = Goal("target", 0.0, 1.0), Goal("epochs", 1.0, 0.5)


def trials(costs: dict[int, list[float]]) -> dict[TrialSpec, Outcome]:
    """Return complete runs of each size, infinite costs standing for those that were given up."""
    return {
        TrialSpec(size, 0.0, seed): outcome(cost)
        if math.isfinite(cost)
        else outcome(9.0, complete=False, stopped=True)
        for size, all_costs in costs.items()
        for seed, cost in enumerate(all_costs)
    }


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=6))
def test_an_interval_is_students(values: list[float]) -> None:
    logs = np.log(values)
    found = estimate(values)

    assert found.value == pytest.approx(stats.gmean(values))
    if np.ptp(logs) > 1e-6:
        low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
        assert (found.low, found.high) == (pytest.approx(np.exp(low)), pytest.approx(np.exp(high)))


def test_one_value_has_no_interval() -> None:
    assert str(estimate([2.0])) == "2"
    assert estimate([2.0]).low is None


def test_a_run_that_was_given_up_counts_four_times_the_best() -> None:
    found = points(trials({8: [2.0, 2.0], 16: [1.0, math.inf]}), TARGET)

    assert [point.complete for point in found] == [2, 1]
    assert found[1].stopped == 1
    assert found[1].score.value == pytest.approx(math.sqrt(1.0 * 8.0))
    assert best(found) == found[0]
    assert found[1].spent == 10.0


def test_nothing_is_best_where_nothing_was_complete() -> None:
    found = points(trials({8: [math.inf], 16: [math.inf]}), TARGET)

    assert best(found) is None
    assert stop_rule({}, TARGET, 2.0, None) == Stop()


def test_of_sizes_that_are_hardly_worse_the_cheapest_is_taken() -> None:
    goal = Goal("epochs", 1.0, 0.0)
    runs = {
        TrialSpec(32, 0.0, 0): outcome(10.0, 0.500),
        TrialSpec(64, 0.0, 0): outcome(6.0, 0.503),
        TrialSpec(128, 0.0, 0): outcome(4.0, 0.530),
    }

    chosen = [best(points(runs, goal), tolerance) for tolerance in (0.0, 0.01, 0.1)]

    assert [None if point is None else point.batch_size for point in chosen] == [32, 64, 128]


def test_what_does_not_fit_is_not_best() -> None:
    runs = {
        TrialSpec(32, 0.0, 0): outcome(10.0),
        TrialSpec(64, 0.0, 0): outcome(0.0, math.nan, complete=False, fits=False),
    }

    chosen = best(points(runs, TARGET))

    assert chosen is not None
    assert chosen.batch_size == 32


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    runs = {
        TrialSpec(size + 1, 0.0, 0): outcome(float(cost), float(loss))
        for size, (cost, loss) in enumerate(pairs)
    }
    kept = {(round(p.cost.value), round(p.loss.value)) for p in front(points(runs, EPOCHS))}

    def beaten(one: tuple[int, int]) -> bool:
        return any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in pairs)

    assert kept == {pair for pair in pairs if not beaten(pair)}


@given(st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_at_every_efficiency_the_choice_is_on_the_front(efficiency: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = {
        TrialSpec(2**k, 0.0, 0): outcome(*np.exp(rng.normal(size=2)).tolist()) for k in range(6)
    }
    found = points(runs, Goal("epochs", 1.0, efficiency))

    assert best(found) in front(found)


def test_the_stop_rule_of_epochs_is_the_mean_curve_of_the_best() -> None:
    runs = {
        TrialSpec(8, 0.0, 0): outcome(1.0, 1.0, curve=((10.0, 0.1, 4.0), (100.0, 1.0, 1.0))),
        TrialSpec(8, 0.0, 1): outcome(1.0, 1.0, curve=((10.0, 0.1, 16.0), (100.0, 1.0, 1.0))),
    }
    found = points(runs, EPOCHS)

    rule = stop_rule(runs, EPOCHS, 2.0, found[0])

    assert rule.samples == (10.0, 100.0)
    assert rule.losses == pytest.approx((8.0, 1.0))
    assert stop_rule(runs, TARGET, 3.0, found[0]).max_cost == pytest.approx(3.0)
