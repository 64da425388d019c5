from collections import Counter

import numpy as np
import pytest

from rlbatch.agents.rules.random_walk import RandomWalk
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import random_run, simple_signals
from rlbatch.testing.policy_contract import PolicyContract, play

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return RandomWalk(seed=3, max_log2_change=2)


@pytest.mark.parametrize(
    ("batch_size", "legal"),
    [
        (64, {-2, -1, 0, 1, 2}),
        (16, {0, 1, 2}),
        (32, {-1, 0, 1, 2}),
        (256, {-2, -1, 0}),
        (2, {0}),  # three doublings away from the bounds: nothing legal leads back
    ],
)
def test_draws_evenly_from_what_is_legal(batch_size: float, legal: set[int]) -> None:
    signals = simple_signals(batch_size=batch_size, min_batch_size=16, max_batch_size=256)
    policy, draws = RandomWalk(max_log2_change=2), 3000
    state, counts = policy.initial_state(), Counter[float]()
    for _ in range(draws):
        decision, state = policy.decide(NOTHING, signals, state)
        counts[float(decision.log2_change)] += 1
    assert set(counts) == legal
    expected = draws / len(legal)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 18.5  # 0.999 quantile with 4 degrees of freedom


def test_runs_and_seeds_differ() -> None:
    run = random_run((50,), np.random.default_rng(0), 1)
    one, other = (
        np.asarray(play(RandomWalk(seed, 3), run, (50,))[0].log2_change) for seed in (0, 1)
    )
    assert (one != other).any()
    assert len(set(one.tolist())) > 1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="seed must not be negative; got -1"):
        RandomWalk(-1)
    with pytest.raises(ConfigurationError, match="at least 1; got 0"):
        RandomWalk(0, 0)
