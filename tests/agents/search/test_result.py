from __future__ import annotations

import math

import pytest

from rlbatch.agents.search.conditions import Conditions
from rlbatch.agents.search.doubling import Doubling
from rlbatch.agents.search.goal import parse_goal
from rlbatch.agents.search.result import Result, conclude, controller_hint
from rlbatch.agents.search.search import Found, Search
from rlbatch.agents.search.trials import TrialSpec
from tests.agents.search.made_up import outcome


def concluded(cheap: str, costs: dict[int, list[float]], objective: str = "target") -> Result:
    search = Search(Conditions(cheap, parse_goal(objective)), Doubling(8, 32, seeds=3))
    trials = {
        TrialSpec(size, 0.0, seed): outcome(cost, complete=math.isfinite(cost))
        if math.isfinite(cost)
        else outcome(9.0, complete=False, stopped=True)
        for size, values in costs.items()
        for seed, cost in enumerate(values)
    }
    return conclude(search, Found(trials, 0))


def test_what_is_worse_with_every_seed_is_worse_though_seeds_differ_by_more(cheap: str) -> None:
    found = concluded(cheap, {8: [1.1, 2.2, 4.4], 16: [1.0, 2.0, 4.01]})

    assert "8 is 10% worse;" in found.sentence


def test_what_is_worse_with_some_seeds_is_in_the_noise(cheap: str) -> None:
    found = concluded(cheap, {8: [1.0, 2.5, 1.5], 16: [1.2, 2.0, 1.3]})

    assert "worse (within the noise between seeds)" in found.sentence


def test_the_rate_is_the_coupled_one(cheap: str) -> None:
    found = concluded(cheap, {8: [2.0, 2.0], 32: [1.0, 1.0]})

    assert found.recommended is not None
    assert found.learning_rate == pytest.approx(0.02 * 2.0)
    assert "with a learning rate of 0.04" in found.sentence
    assert "32, the largest size allowed" in found.sentence
    assert found.search_cost == 6.0


def test_without_a_run_that_arrived_nothing_is_recommended(cheap: str) -> None:
    found = concluded(cheap, {8: [math.inf, math.inf]})

    assert found.recommended is None
    assert "nothing to recommend" in found.sentence
    assert found.to_json()["points"][0]["score"]["value"] is None


def test_the_controllers_side_of_the_balance() -> None:
    assert "epochs" in controller_hint(0.0)
    assert controller_hint(0.1) == "--policy noise-scale:theta=1.3"
    assert "largest" in controller_hint(0.5)
    assert "target" in controller_hint(1.0)
