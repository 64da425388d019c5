"""The bandit against a replay of the published procedure and formulas on a table of costs."""

from __future__ import annotations

import math
from collections.abc import Generator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.agents.search.bandit import (
    Bandit,
    PastRun,
    arm_rewards,
    choose,
    posterior,
    survivors,
)
from rlbatch.errors import ConfigurationError, RlbatchError

# Epochs that ShuffleNetV2 needs to 60% on CIFAR-100 in the public traces of Zeus, times a cost of
# an epoch that falls with the size. The largest do not converge within twice the least cost.
EPOCHS = {16: 19, 32: 16.6, 64: 18.4, 128: 19.6, 256: 31, 512: 43, 1024: 79, 2048: 204, 4096: 485}
COSTS = {size: epochs * (1.0 + 200.0 / size) for size, epochs in EPOCHS.items()}
SIZES = tuple(COSTS)


def published_pruning(
    sizes: list[int], default: int, rounds: int
) -> Generator[int, tuple[float, bool], list[int]]:
    """Yield what to explore, are sent (cost, converged), return the survivors (section 4.4)."""
    for _ in range(rounds):
        good, cheapest, following = list[int](), math.inf, default
        start = sizes.index(default)
        for way in (sorted(sizes[: start + 1], reverse=True), sorted(sizes[start + 1 :])):
            for size in way:
                cost, converged = yield size
                if not converged:
                    break
                good.append(size)
                if cost < cheapest:
                    cheapest, following = cost, size
        sizes, default = sorted(good), following
    return sizes


def recur(plan: Bandit, count: int, seed: int = 0) -> list[PastRun]:
    """Run the job, its cost varying by a few percent, stopped at the bandit's limit."""
    rng, runs = np.random.default_rng(seed), list[PastRun]()
    for _ in range(count):
        choice = choose(plan, runs)
        cost = COSTS[choice.batch_size] * math.exp(0.05 * rng.normal())
        converged = cost <= choice.max_cost
        cost = min(cost, choice.max_cost)
        runs.append(PastRun(choice.batch_size, choice.pruning, False, cost, converged))
    return runs


@pytest.mark.parametrize("default", [16, 256, 4096])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_pruning_is_the_published_one(default: int, rounds: int) -> None:
    plan = Bandit(SIZES, default, rounds=rounds)
    runs = recur(plan, 60)
    explorer = published_pruning(list(SIZES), default, rounds)
    wanted, left = next(explorer), None
    for run in runs:
        if not run.pruning:
            break
        assert run.batch_size == wanted
        try:
            wanted = explorer.send((run.cost, run.converged))
        except StopIteration as stop:
            left = stop.value
    assert left is not None
    assert left == list(survivors(plan, runs))
    assert {run.batch_size for run in runs if not run.pruning} <= set(left)


def test_a_run_is_given_up_at_beta_times_the_least_cost_so_far() -> None:
    plan, least = Bandit(SIZES, 256, beta=1.5), math.inf
    runs = recur(plan, 40)

    for count, run in enumerate(runs):
        assert choose(plan, runs[:count]).max_cost == 1.5 * least
        assert run.cost <= 1.5 * least
        if run.converged:
            least = min(least, run.cost)


@given(
    st.lists(st.integers(-1000, -1), min_size=2, max_size=8).filter(lambda r: len(set(r)) > 1),
    st.integers(-100, 100),
    st.integers(0, 10),
)
def test_the_posterior_is_the_published_formula(
    rewards: list[int], prior_mean: int, prior_precision: int
) -> None:
    plan = Bandit((8,), 8, prior_mean=prior_mean, prior_precision=prior_precision)
    # Exactly, with fractions: prec_r = 1 / var, prec = prior + n prec_r, mean = (...) / prec.
    mean = Fraction(sum(rewards), len(rewards))
    variance = sum((Fraction(r) - mean) ** 2 for r in rewards) / len(rewards)
    precision = prior_precision + len(rewards) / variance
    posterior_mean = (prior_precision * prior_mean + sum(rewards) / variance) / precision

    found = posterior(plan, [float(r) for r in rewards])

    assert found == (pytest.approx(float(posterior_mean)), pytest.approx(float(precision)))


def test_a_single_reward_is_taken_at_its_word() -> None:
    assert posterior(Bandit((8,), 8), [-3.0]) == (-3.0, math.inf)


def test_draws_are_as_often_the_best_as_the_posterior_says() -> None:
    rewards = {8: [-10.0, -12.0, -11.0], 16: [-10.5, -11.0, -9.0]}
    runs = [
        PastRun(size, False, False, -value, True)
        for pair in zip(*rewards.values(), strict=True)
        for size, value in zip(rewards, pair, strict=True)
    ]
    pruned = [PastRun(8, True, False, 11.0, True), PastRun(16, True, False, 10.0, True)]
    history = [*pruned, *runs]
    chosen = []
    for seed in range(2000):
        plan = Bandit((8, 16), 8, rounds=1, seed=seed)
        chosen.append(choose(plan, history).batch_size)
    plan = Bandit((8, 16), 8, rounds=1)
    (low, low_prec), (high, high_prec) = (
        posterior(plan, arm_rewards(plan, history, size)) for size in (8, 16)
    )
    deviation = math.sqrt(1 / low_prec + 1 / high_prec)
    expected = 0.5 * (1 + math.erf((high - low) / deviation / math.sqrt(2)))

    assert np.mean([size == 16 for size in chosen]) == pytest.approx(expected, abs=0.035)


def test_it_settles_on_the_cheapest_size() -> None:
    plan = Bandit(SIZES, 1024)
    runs = recur(plan, 80)
    best = min(COSTS, key=lambda size: COSTS[size])

    late = [run.batch_size for run in runs[40:]]
    assert np.mean([COSTS[size] for size in late]) < 1.05 * COSTS[best]


def test_a_step_forgets() -> None:
    plan = Bandit((8, 16), 8, rounds=1, window=2)
    runs = [PastRun(8, False, False, cost, True) for cost in (100.0, 1.0, 2.0)]

    assert arm_rewards(plan, runs, 8) == [-1.0, -2.0]


def test_while_one_run_explores_others_take_the_cheapest_so_far() -> None:
    plan = Bandit((8, 16, 32), 16)
    begun = [PastRun(16, True, running=True)]
    one_done = [PastRun(16, True, False, 5.0, True), PastRun(8, True, running=True)]

    assert (choose(plan, begun).batch_size, choose(plan, begun).pruning) == (16, False)
    assert (choose(plan, one_done).batch_size, choose(plan, one_done).pruning) == (16, False)
    # What such a run costs counts for its size, and not for the pruning.
    beside = [*one_done[:1], PastRun(16, False, False, 5.2, True)]
    assert choose(plan, beside).batch_size == 8
    assert arm_rewards(plan, beside, 16) == [-5.0, -5.2]


def test_where_nothing_converges_the_error_says_so() -> None:
    plan = Bandit((8, 16), 8)
    runs = [PastRun(8, True, False, 5.0, False), PastRun(16, True, False, 5.0, False)]

    with pytest.raises(RlbatchError, match="No batch size"):
        choose(plan, runs)


@pytest.mark.parametrize(
    "changes", [{"sizes": (16, 8)}, {"default": 9}, {"rounds": 0}, {"beta": 1.0}, {"window": -1}]
)
def test_settings_that_make_no_bandit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Bandit(**{"sizes": (8, 16), "default": 8, **changes})
