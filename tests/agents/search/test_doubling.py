from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbatch.agents.search.doubling import Doubling, next_trials
from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.summary import best, points
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.errors import ConfigurationError
from tests.agents.search.made_up import Table, outcome

TARGET = Goal("target", 0.0, 1.0)


def search(
    plan: Doubling, function: Callable[[TrialSpec, Stop], Outcome], goal: Goal = TARGET
) -> tuple[dict[TrialSpec, Outcome], Table]:
    table, trials = Table(function), dict[TrialSpec, Outcome]()
    while work := next_trials(plan, goal, trials):
        trials |= table(work)
    return trials, table


def by_size(costs: dict[int, float]) -> Callable[[TrialSpec, Stop], Outcome]:
    def cost(spec: TrialSpec, stop: Stop) -> Outcome:
        value = costs[spec.batch_size]
        if stop.max_cost is not None and value > stop.max_cost:
            return outcome(stop.max_cost, complete=False, stopped=True)
        return outcome(value)

    return cost


@given(
    st.lists(st.floats(1.0, 100.0), min_size=7, max_size=7),
    st.integers(1, 3),
    st.floats(0.0, 0.2),
)
def test_sizes_are_those_of_the_procedure_by_hand(
    costs: list[float], patience: int, threshold: float
) -> None:
    table = {2**k: cost for k, cost in enumerate(costs)}
    plan = Doubling(1, 64, patience=patience, min_improvement=threshold, seeds=1, stop_factor=1e9)

    trials, _ = search(plan, by_size(table))

    lowest, without, visited = math.inf, 0, []
    for size, cost in table.items():
        visited.append(size)
        without = 0 if cost < lowest * (1 - threshold) else without + 1
        lowest = min(lowest, cost)
        if without == patience:
            break
    assert sorted({spec.batch_size for spec in trials}) == visited
    chosen = best(points(trials, TARGET))
    assert chosen is not None
    assert chosen.batch_size == min(visited, key=lambda size: table[size])


def test_every_size_has_its_seeds_and_a_run_too_dear_is_given_up() -> None:
    plan = Doubling(32, 512, patience=1, seeds=3)

    trials, _ = search(plan, by_size({32: 10.0, 64: 6.0, 128: 30.0, 256: 1.0, 512: 1.0}))

    assert sorted(trials) == [
        TrialSpec(size, 0.0, seed) for size in (32, 64, 128) for seed in range(3)
    ]
    given_up = [o for spec, o in trials.items() if spec.batch_size == 128]
    assert all(one.stopped and one.cost == pytest.approx(12.0) for one in given_up)


def test_before_any_size_gets_there_larger_ones_are_tried() -> None:
    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        return outcome(5.0, complete=spec.batch_size >= 64)

    trials, _ = search(Doubling(8, 512, patience=1, seeds=1), function)

    assert sorted(spec.batch_size for spec in trials) == [8, 16, 32, 64, 128]


def test_beyond_the_memory_no_further_size_is_tried() -> None:
    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        fits = spec.batch_size < 64
        return outcome(100.0 / spec.batch_size if fits else 0.0, complete=fits, fits=fits)

    trials, _ = search(Doubling(8, 512, seeds=2), function)

    assert sorted({spec.batch_size for spec in trials}) == [8, 16, 32, 64]


def test_the_rate_is_followed_to_where_it_is_best() -> None:
    # The best rate is four times the coupled one at 32 and eight times at 64.
    wanted = {32: 2.0, 64: 3.0, 128: 3.0}

    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        return outcome(100.0 / spec.batch_size * 2.0 ** abs(spec.rate - wanted[spec.batch_size]))

    trials, _ = search(Doubling(32, 128, seeds=1, tune_rate=True), function)

    rates = {size: {s.rate for s in trials if s.batch_size == size} for size in wanted}
    assert rates[32] == {-1.0, 0.0, 1.0, 2.0, 3.0}
    assert rates[64] == {1.0, 2.0, 3.0, 4.0}  # starts at what was best before
    chosen = best(points(trials, TARGET))
    assert chosen is not None
    assert (chosen.batch_size, chosen.rate) == (128, 3.0)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(0, 40))
def test_a_search_goes_on_from_any_point_and_repeats_nothing(seed: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {2**k: float(c) for k, c in enumerate(np.exp(rng.normal(size=8)))}
    plan = Doubling(1, 128, patience=2, seeds=3, tune_rate=True)

    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        return outcome(costs[spec.batch_size] * (1.1 + math.sin(spec.rate + spec.seed)))

    whole, _ = search(plan, function)
    left = dict(list(whole.items())[:kept])
    table, trials = Table(function), dict(left)
    while work := next_trials(plan, TARGET, trials):
        trials |= table(work)

    assert trials == whole
    assert not set(table.asked) & set(left)


@pytest.mark.parametrize(
    "changes",
    [
        {"first": 0},
        {"first": 99},
        {"factor": 1.0},
        {"patience": 0},
        {"seeds": 0},
        {"min_improvement": 1.0},
        {"stop_factor": 0.5},
    ],
)
def test_what_would_never_start_or_end_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Doubling(**{"first": 8, "largest": 64, **changes})


def test_sizes_between_powers() -> None:
    assert Doubling(10, 100, factor=1.5).sizes() == [10, 15, 22, 34, 51, 76, 100]
