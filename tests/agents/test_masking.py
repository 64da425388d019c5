"""What a training is not shown, its policy does not look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.masking import MaskedGroups
from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.errors import UnknownNameError
from rlbatch.observation import GROUPS, OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.testing import simple_signals

HIDDEN = ("noise", "history")
COLUMNS = [OBSERVATION_NAMES.index(name) for group in HIDDEN for name in GROUPS[group]]
TINY = Recipe(
    "tiny",
    (Stage(timesteps=512, simulated=32, real=0, rollout_steps=16, minibatch=256, epochs=2),),
    pool_size=64,
    hidden=HIDDEN,
)


def test_only_the_named_groups_are_hidden() -> None:
    def environment() -> QuadraticVecEnv:
        return QuadraticVecEnv(make_pool(64, 0), 16, 0, DEFAULT_ACTIONS)

    plain, hiding = environment(), MaskedGroups(environment(), HIDDEN)
    shown = np.setdiff1d(np.arange(OBSERVATION_SIZE), COLUMNS)
    expected, found, last = np.asarray(plain.reset()), np.asarray(hiding.reset()), 0
    seen = np.zeros(len(COLUMNS), dtype=bool)
    for _ in range(60):
        np.testing.assert_array_equal(found[:, shown], expected[:, shown])
        assert not found[:, COLUMNS].any()
        seen |= expected[:, COLUMNS].any(axis=0)
        actions = np.full(16, 3)
        plain_step, hiding_step = plain.step(actions), hiding.step(actions)
        expected, found = np.asarray(plain_step[0]), np.asarray(hiding_step[0])
        for before, after in zip(plain_step[3], hiding_step[3], strict=True):
            if "terminal_observation" in before:
                last += 1
                assert not after["terminal_observation"][COLUMNS].any()
                np.testing.assert_array_equal(
                    after["terminal_observation"][shown], before["terminal_observation"][shown]
                )
    assert last > 5
    assert seen.sum() > len(COLUMNS) // 2  # there was something to hide


def test_the_policy_ignores_what_its_training_did_not_show(tmp_path: Path) -> None:
    policy = load_policy(train(TINY, tmp_path / "out"))
    rng = np.random.default_rng(0)
    one = rng.uniform(-1, 1, (200, OBSERVATION_SIZE)).astype(np.float32)
    other = one.copy()
    other[:, COLUMNS] = rng.uniform(-1, 1, (200, len(COLUMNS)))
    state = policy.initial_state((200,))
    first, _ = policy.decide(one, simple_signals(), state)
    second, _ = policy.decide(other, simple_signals(), state)
    np.testing.assert_array_equal(np.asarray(first.probabilities), np.asarray(second.probabilities))
    np.testing.assert_array_equal(np.asarray(first.value), np.asarray(second.value))
    other[:, 0] += 0.5  # a feature that it was shown
    third, _ = policy.decide(other, simple_signals(), state)
    assert not np.array_equal(np.asarray(third.probabilities), np.asarray(second.probabilities))


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nois"):
        train(replace(TINY, hidden=("nois",)), tmp_path / "out")
