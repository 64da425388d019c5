from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.agents.search.goal import Goal, noise_scale_theta, parse_goal
from rlbatch.errors import ConfigurationError

positive = st.floats(1e-6, 1e6)
shares = st.floats(0.0, 1.0)


def test_the_texts_of_the_command_line() -> None:
    assert parse_goal("target") == Goal("target", 0.0, 1.0)
    assert parse_goal("epochs=2.5", 0.3) == Goal("epochs", 2.5, 0.3)
    assert parse_goal("epochs=4") == Goal("epochs", 4.0, 0.0)
    assert parse_goal("budget=7") == Goal("budget", 7.0, 0.0)
    assert [parse_goal(text).text for text in ("target", "epochs=2", "budget=0.5")] == [
        "target",
        "epochs=2",
        "budget=0.5",
    ]


@pytest.mark.parametrize(
    "text", ["", "epochs", "epochs=", "epochs=x", "epochs=0", "epochs=-1", "target=3", "budget=nan"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_goal(text)


@pytest.mark.parametrize(("text", "efficiency"), [("target", 0.5), ("budget=3", 1.0)])
def test_there_is_nothing_to_weigh_where_one_of_both_is_fixed(text: str, efficiency: float) -> None:
    with pytest.raises(ConfigurationError, match="nothing to weigh"):
        parse_goal(text, efficiency)


def test_an_efficiency_is_a_share() -> None:
    with pytest.raises(ConfigurationError, match="between 0"):
        parse_goal("epochs=1", 1.5)


@given(shares, positive, positive)
def test_a_score_is_the_weighted_geometric_mean(e: float, cost: float, loss: float) -> None:
    assert Goal("epochs", 1.0, e).score(cost, loss) == pytest.approx(loss ** (1 - e) * cost**e)


@given(shares, positive, positive, positive, positive, positive)
def test_units_do_not_change_an_order(
    e: float, cost: float, loss: float, other_cost: float, other_loss: float, unit: float
) -> None:
    goal = Goal("epochs", 1.0, e)
    ratio = goal.score(cost, loss) / goal.score(other_cost, other_loss)

    assert goal.score(cost * unit, loss) / goal.score(other_cost * unit, other_loss) == (
        pytest.approx(ratio)
    )


def test_a_loss_that_is_no_number_is_as_bad_as_can_be() -> None:
    assert Goal("epochs", 1.0).score(1.0, math.nan) == math.inf


@pytest.mark.parametrize("efficiency", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("exponent", [0.3, 0.5])
def test_the_controllers_theta_is_where_the_model_of_a_run_is_best(
    efficiency: float, exponent: float
) -> None:
    noise_scale = 100.0
    sizes = np.exp(np.linspace(-8, 12, 400_001))
    loss = (1.0 / (1.0 + sizes / noise_scale)) ** -exponent
    cost = 1.0 / sizes  # steps of the same price
    best = sizes[np.argmin((1 - efficiency) * np.log(loss) + efficiency * np.log(cost))]

    theta = noise_scale_theta(efficiency, exponent)

    assert noise_scale / theta**2 == pytest.approx(best, rel=1e-3)


def test_where_cost_is_nearly_all_no_size_is_too_large() -> None:
    assert noise_scale_theta(0.5, 0.3) == 0.0
    with pytest.raises(ConfigurationError):
        noise_scale_theta(0.0)
