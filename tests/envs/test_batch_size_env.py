"""The live environment: Gymnasium's and SB3's checkers, determinism, and what the rewards add up
to."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlbatch.envs.batch_size_env import BatchSizeEnv
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import ConfigurationError

IDS = ("rlbatch/BatchSize-v0", "rlbatch/BatchSizeQuadratic-v0")
STAY = BatchSizeEnv().actions_log2.index(0.0)


@pytest.mark.parametrize("name", [*IDS, "rlbatch/BatchSizeWallClock-v0"])
def test_both_checkers_pass_without_a_warning(name: str) -> None:
    env = gymnasium.make(f"rlbatch.envs:{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_two_episodes_of_one_seed_are_bit_equal(name: str) -> None:
    one, two = (gymnasium.make(name).unwrapped for _ in range(2))
    first, second = one.reset(seed=11), two.reset(seed=11)
    np.testing.assert_array_equal(first[0], second[0])
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.integers(one.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
        a, b = one.step(action), two.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
        if a[2] or a[3]:
            break


def counted(ratio: float) -> float:
    """What a ratio counts in the reward."""
    return ratio if ratio <= 1.0 else 1.0 + math.log(ratio)


def run_episode(env: gymnasium.Env, action: int) -> tuple[float, bool, bool, dict]:
    total = 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total, terminated, truncated, info


def test_the_rewards_after_the_first_chunk_sum_to_minus_its_share_of_the_ratio() -> None:
    env = BatchSizeEnv()
    _, info = env.reset(seed=0)
    first = info["ratio"]
    total, terminated, truncated, info = run_episode(env, STAY)
    assert terminated
    assert not truncated
    assert info["reached"]
    assert total == pytest.approx(counted(first) - counted(info["ratio"]))
    # The reference of a fixed setting is the default batch size's own cost, on another seed.
    assert 0.3 < info["ratio"] < 3.0


def test_a_run_that_spends_its_limit_is_truncated_at_the_cap() -> None:
    env = BatchSizeEnv(
        "digits-mlp-sgd", lr_coupling="linear", start=0.03125, profile="accelerator-4096"
    )
    _, info = env.reset(seed=0)
    first = info["ratio"]
    total, terminated, truncated, info = run_episode(env, STAY)
    assert truncated
    assert not terminated
    assert not info["reached"]
    assert total == pytest.approx(counted(first) - counted(UNREACHED_RATIO))


def test_the_action_multiplies_the_batch_size_within_bounds() -> None:
    env = BatchSizeEnv(start=1.0)
    _, info = env.reset(seed=0)
    before = info["batch_size"]
    _, _, _, _, info = env.step(np.int64(env.actions_log2.index(1.0)))
    assert info["batch_size"] == 2 * before
    for _ in range(3):
        _, _, terminated, _, info = env.step(np.int64(0))
        if terminated:
            break
    assert info["batch_size"] >= 1


def test_wrong_use_is_said() -> None:
    with pytest.raises(ConfigurationError, match="No run is in progress"):
        BatchSizeEnv().step(np.int64(0))
    with pytest.raises(ConfigurationError, match="actions must be finite"):
        BatchSizeEnv(actions=())
    assert BatchSizeEnv(render_mode=None).render() is None
