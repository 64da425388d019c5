from __future__ import annotations

import math

import pytest

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.hopeless import is_hopeless
from rlbatch.agents.search.trials import Stop
from rlbatch.envs.live import Validation

QUALITY = Goal("epochs", 1.0, 0.0)
# The best size's loss is 1000 / samples.
SAMPLES = tuple(float(s) for s in range(10, 1001, 10))
BEST = Stop(None, SAMPLES, tuple(1000.0 / s for s in SAMPLES), best_score=1.0)


def lagging(factor: float, samples: int, cost: float = 1.0) -> list[Validation]:
    """Return the one validation of a run that needs `factor` times the samples."""
    return [Validation(1, samples, cost, factor * 1000.0 / samples)]


@pytest.mark.parametrize(
    ("validations", "given_up"),
    [
        (lagging(1.9, 600), False),  # behind, but by less than two
        (lagging(2.1, 600), True),
        (lagging(2.1, 400), False),  # not yet half of the run
        ([Validation(1, 600, 1.0, math.nan)], True),
        ([], False),
    ],
)
def test_a_run_is_given_up_once_it_lags_by_more_than_two(
    validations: list[Validation], given_up: bool
) -> None:
    assert is_hopeless(validations, QUALITY, BEST, 1000.0) is given_up


def test_a_cheap_run_may_lag_where_cost_counts() -> None:
    goal = Goal("epochs", 1.0, 0.5)
    rule = Stop(None, BEST.samples, BEST.losses, best_score=goal.score(10.0, 1.0))

    assert not is_hopeless(lagging(2.1, 600, cost=0.6), goal, rule, 1000.0)
    assert is_hopeless(lagging(2.1, 600, cost=6.0), goal, rule, 1000.0)


def test_nothing_is_hopeless_before_anything_is_known() -> None:
    assert not is_hopeless(lagging(9.0, 900), QUALITY, Stop(), 1000.0)
    assert not is_hopeless(lagging(9.0, 900), QUALITY, BEST, None)
