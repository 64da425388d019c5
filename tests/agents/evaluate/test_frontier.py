"""Against frontiers made by hand and against one in closed form."""

import math

import numpy as np
import pytest

from rlbatch.agents.evaluate.frontier import FixedEnd, Frontier, time_at_equal_loss
from rlbatch.errors import ConfigurationError

# Costs double along each size. Losses: 32 is cheap early, 128 gets further, 512 never pays.
BY_HAND = Frontier(
    [
        *(FixedEnd(32, 1.0, cost, loss) for cost, loss in [(2, 1.0), (4, 0.6), (8, 0.5)]),
        *(FixedEnd(128, 1.0, cost, loss) for cost, loss in [(4, 0.7), (8, 0.4), (16, 0.3)]),
        *(FixedEnd(512, 1.0, cost, loss) for cost, loss in [(9, 0.9), (18, 0.6), (36, 0.5)]),
    ]
)


@pytest.mark.parametrize(
    ("loss", "cost", "size"),
    [
        (1.0, 2.0, 32),
        (0.6, 4.0, 32),  # where 128 needs 4 x 2^(1/3)
        (0.8, 2 * math.sqrt(2), 32),  # halfway between losses: half of a doubling
        (0.5, 4 * 2 ** (2 / 3), 128),
        (0.4, 8.0, 128),
        (0.35, 8 * math.sqrt(2), 128),
        (0.3, 16.0, 128),
        # Beyond the ends the last segment goes on: 0.1 of loss for a doubling, 0.4 of loss for one.
        (0.26, 16 * 2**0.4, 128),
        (1.1, 2 / 2**0.25, 32),
    ],
)
def test_least_cost_of_a_loss(loss: float, cost: float, size: int) -> None:
    found = BY_HAND.at(loss)
    assert found.cost == pytest.approx(cost)
    assert (found.batch_size, found.beyond) == (size, False)


@pytest.mark.parametrize(
    ("loss", "cost", "size"), [(0.1, 16 * math.sqrt(2), 128), (5.0, 2 / math.sqrt(2), 32)]
)
def test_no_more_than_half_a_doubling_beyond_the_ends(loss: float, cost: float, size: int) -> None:
    found = BY_HAND.at(loss)
    assert found.cost == pytest.approx(cost)
    assert (found.batch_size, found.beyond) == (size, True)


def test_a_size_whose_shortest_run_is_better_than_needed_is_not_forgotten() -> None:
    """64 has 0.3 after its shortest run, cost 4; 8 needs 30 for 0.5."""
    frontier = Frontier(
        [FixedEnd(64, 1, 4, 0.3), FixedEnd(64, 2, 8, 0.29), FixedEnd(8, 1, 30, 0.5)]
    )
    found = frontier.at(0.5)
    assert (found.batch_size, found.beyond) == (64, True)
    assert found.cost == pytest.approx(4 / math.sqrt(2))


def test_longer_runs_that_overfit_and_lost_runs_are_left_out() -> None:
    ends = [(1, 0.5), (2, 0.4), (4, 0.45), (8, 0.35), (16, math.inf), (32, math.nan)]
    frontier = Frontier(FixedEnd(64, 1.0, cost, loss) for cost, loss in ends)
    assert frontier.at(0.4).cost == pytest.approx(2)
    assert frontier.at(0.375).cost == pytest.approx(4)  # between (2, 0.4) and (8, 0.35)
    with pytest.raises(ConfigurationError, match="finite loss, got none"):
        Frontier([FixedEnd(64, 1.0, 1.0, math.inf)])


def test_one_length_of_a_size_serves_its_own_loss_and_higher_ones() -> None:
    frontier = Frontier([FixedEnd(64, 1.0, 8.0, 0.5)])
    assert frontier.at(0.5).cost == 8.0
    assert frontier.at(0.6).cost == pytest.approx(8.0)
    assert frontier.at(0.4).beyond


def test_agrees_with_a_law_in_closed_form() -> None:
    """Loss = (steps^-1 + noise(B) / samples)^0.5; a dense grid finds the true least cost."""

    def loss(size: float, steps: float) -> float:
        return math.sqrt(1 / steps + 40.0 / (size * steps))

    def cost(size: float, steps: float) -> float:
        return steps * (1 + size / 256)

    sizes = [2**k for k in range(3, 11)]
    ends = [
        FixedEnd(size, 1.0, cost(size, steps), loss(size, steps))
        for size in sizes
        for steps in 100 * 2.0 ** np.arange(5)
    ]
    frontier = Frontier(ends)
    for wanted in (0.05, 0.07, 0.09):
        steps = [(1 + 40.0 / size) / wanted**2 for size in sizes]
        exact = min(cost(size, n) for size, n in zip(sizes, steps, strict=True))
        assert frontier.at(wanted).cost == pytest.approx(exact, rel=0.04)


def test_time_at_equal_loss() -> None:
    assert time_at_equal_loss(12.0, 0.4, BY_HAND) == pytest.approx(1.5)
    assert time_at_equal_loss(4.0, 0.4, BY_HAND) == pytest.approx(0.5)
    assert time_at_equal_loss(80.0, 0.4, BY_HAND) == pytest.approx(10.0)
    assert time_at_equal_loss(1.0, math.nan, BY_HAND) == 4.0
    assert time_at_equal_loss(1.0, math.inf, BY_HAND) == 4.0
