"""The simulator behind `gymnasium.make_vec`: the same runs as one at a time, and its resets."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rlbatch.envs.simulator.gym_vector_env import QuadraticGymVectorEnv
from rlbatch.errors import ConfigurationError

ID = "rlbatch.envs:rlbatch/BatchSizeQuadratic-v0"
STAY = 3


def test_make_vec_gives_the_fast_simulator() -> None:
    envs = gymnasium.make_vec(ID, 4)
    assert isinstance(envs.unwrapped, QuadraticGymVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = envs.reset(seed=1)
    assert envs.observation_space.contains(observation)
    assert info["batch_size"].shape == (4,)


def test_one_run_among_one_is_the_single_environments() -> None:
    """Of equal generators; they draw the task and the noise in the same order."""
    many, single = gymnasium.make_vec(ID, 1), gymnasium.make(ID)
    together, alone = many.reset(seed=5), single.reset(seed=5)
    np.testing.assert_array_equal(together[0][0], alone[0])
    for action in (3, 4, 2, 3, 3, 5):
        seen, reward, terminated, truncated, info = many.step(np.array([action]))
        wanted = single.step(action)
        np.testing.assert_array_equal(seen[0], wanted[0])
        assert reward[0] == wanted[1]
        assert (terminated[0], truncated[0]) == wanted[2:4]
        assert info["batch_size"][0] == wanted[4]["batch_size"]
        assert info["ratio"][0] == wanted[4]["ratio"]
        if wanted[2] or wanted[3]:
            break


def test_equal_seeds_give_equal_data() -> None:
    def play(seed: int | list[int]) -> list[object]:
        envs = QuadraticGymVectorEnv(8)
        envs.action_space.seed(2)
        data: list[object] = [envs.reset(seed=seed)[0]]
        for _ in range(60):
            seen, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
            data += [seen, reward, terminated, truncated, info["cost"], info["ratio"]]
        return data

    assert data_equivalence(play(3), play(3), exact=True)
    assert data_equivalence(play([1, 2, 3]), play([1, 2, 3]), exact=True)
    assert not data_equivalence(play(3), play(4))


def test_an_ended_run_is_replaced_in_the_next_step() -> None:
    envs = gymnasium.make_vec(ID, 16)
    envs.reset(seed=0)
    ended, ends = np.zeros(16, dtype=bool), 0
    for _ in range(300):
        _, reward, terminated, truncated, info = envs.step(np.full(16, STAY))
        assert (reward[ended] == 0.0).all()
        assert (reward[~ended] <= 0.0).all()
        assert reward[~ended].any()
        assert not (terminated & truncated).any()
        assert not (ended & (terminated | truncated)).any()
        assert (info["steps"][ended] <= 20).all()  # of a first chunk
        ended = terminated | truncated
        ends += ended.sum()
        assert (info["reached"] <= terminated).all()
    assert ends > 16


def test_a_run_that_is_replaced_is_of_the_task_that_it_is_said_to_be() -> None:
    envs = QuadraticGymVectorEnv(16)
    envs.reset(seed=0)
    ended, info = np.zeros(16, dtype=bool), {}
    for _ in range(60):
        _, _, terminated, truncated, info = envs.step(np.full(16, STAY))
        ended |= terminated | truncated
    assert ended.sum() > 8
    episodes: Any = envs._episodes
    runs, tasks = episodes.runs, envs._pool.tasks.take(info["task"])
    for name, wanted in vars(tasks).items():
        np.testing.assert_array_equal(getattr(runs.tasks, name), wanted, err_msg=name)


def test_gymnasiums_episode_statistics_add_up() -> None:
    envs = RecordEpisodeStatistics(gymnasium.make_vec(ID, 16))
    envs.reset(seed=0)
    seen = 0
    for _ in range(300):
        *_, info = envs.step(np.full(16, STAY))
        if "episode" in info:
            seen += 1
            for place in np.flatnonzero(info["_episode"]):
                # All but the first chunk's share of minus the disutility of the ratio.
                ratio = info["ratio"][place]
                counted = ratio if ratio <= 1 else 1 + np.log(ratio)
                assert -counted - 1e-6 <= info["episode"]["r"][place] <= 0
    assert seen


def test_wrong_use_is_refused_with_a_sentence() -> None:
    envs = QuadraticGymVectorEnv(2)
    with pytest.raises(ConfigurationError, match="Call reset"):
        envs.step(np.array([3, 3]))
    envs.reset(seed=0)
    for actions in ([3, 7], [-1, 3], [3], [3.0, 3.0], 3):
        with pytest.raises(ConfigurationError, match=r"whole numbers of shape \(2,\) from 0 to 6"):
            envs.step(np.array(actions))
    with pytest.raises(ConfigurationError, match="knows no options"):
        envs.reset(options={"start": 2.0})
    with pytest.raises(ConfigurationError, match="num_envs must be at least 1"):
        QuadraticGymVectorEnv(0)
    with pytest.raises(ConfigurationError, match="not rendered"):
        QuadraticGymVectorEnv(2, render_mode="ansi")
