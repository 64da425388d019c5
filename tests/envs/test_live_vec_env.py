"""Vector environments of real runs, here and in another process, against episodes one by one."""

from __future__ import annotations

import math
import os
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

from rlbatch import observation
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.live_vec_env import LiveVecEnv
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.remote_vec_env import ProcessServer, RemoteVecEnv
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.errors import RlbatchError
from rlbatch.signals.record import Coupling

ACTIONS, COUNT = (-1.0, 0.0, 1.0), 3


def draw(rng: np.random.Generator) -> EpisodeSetting:
    return EpisodeSetting(
        task="random:3:0.03286:0.5548",
        seed=int(rng.integers(1000)),
        coupling=Coupling.SQRT,
        profile=resolve_profile("cpu"),
        target_loss=0.9,
        start_batch_size=64,
        reference_cost=0.02,
        planned_steps=52,
    )


def make(crashes: int = 0, *, broken: bool = False) -> VecEnv:
    if broken:
        raise ValueError("no such thing")
    return LiveVecEnv(draw, COUNT, 7 + crashes, ACTIONS)


def test_runs_side_by_side_are_episodes_one_by_one() -> None:
    env, rng = LiveVecEnv(draw, COUNT, 7, ACTIONS), np.random.default_rng(7)
    seen: Any = env.reset()
    episodes = [LiveEpisode(draw(rng)) for _ in range(COUNT)]
    states: list[Any] = []
    for row, episode in zip(seen, episodes, strict=True):
        expected, state = observation.encode(episode.first, observation.initial_state())
        np.testing.assert_allclose(row, expected, atol=1e-6)
        states.append(state)
    total = np.zeros(COUNT)
    ends = 0
    for step in range(60):
        actions = (np.arange(COUNT) + step) % 3
        seen, rewards, ended, infos = env.step(actions)
        for i in range(COUNT):
            made = episodes[i].step(ACTIONS[actions[i]])
            expected, states[i] = observation.encode(made.signals, states[i])
            total[i] += made.reward
            assert rewards[i] == pytest.approx(made.reward, abs=1e-6)
            assert ended[i] == (made.terminated or made.truncated)
            if not ended[i]:
                np.testing.assert_allclose(seen[i], expected, atol=1e-6)
                continue
            ends += 1
            np.testing.assert_allclose(infos[i]["terminal_observation"], expected, atol=1e-6)
            # The first chunk is paid for and not in the rewards.
            ratio = infos[i]["ratio"]
            first_chunk = (ratio if ratio <= 1.0 else 1.0 + math.log(ratio)) + total[i]
            assert infos[i]["episode"]["r"] == pytest.approx(total[i])
            assert 0.0 < first_chunk < 0.3 or not infos[i]["reached"]
            total[i] = 0.0
        for i in np.flatnonzero(ended):  # begun in this order
            episodes[i] = LiveEpisode(draw(rng))
            fresh, states[i] = observation.encode(episodes[i].first, observation.initial_state())
            np.testing.assert_allclose(seen[i], fresh, atol=1e-6)
    assert ends >= 3


def running(there: RemoteVecEnv) -> BaseProcess:
    assert isinstance(there._server, ProcessServer)
    return there._server._process


@pytest.mark.slow
def test_another_process_gives_the_same_and_may_die() -> None:
    here, there = make(), RemoteVecEnv(make)
    try:
        assert there.num_envs == COUNT
        np.testing.assert_array_equal(here.reset(), there.reset())
        for _ in range(5):
            actions = np.array([0, 1, 2])
            for ours, theirs in zip(here.step(actions)[:3], there.step(actions)[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        process = running(there)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.warns(RuntimeWarning, match="another takes its place"):
            seen, rewards, ended, infos = there.step(np.array([0, 1, 2]))
        assert ended.all()
        assert not rewards.any()
        assert all(info["TimeLimit.truncated"] for info in infos)
        np.testing.assert_array_equal(seen, make(1).reset())
        after: Any = there.step(np.array([1, 1, 1]))[0]
        assert after.shape == (COUNT, observation.OBSERVATION_SIZE)
    finally:
        there.close()
    deadline = time.monotonic() + 60
    while running(there).is_alive():
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_what_goes_wrong_elsewhere_is_told_here() -> None:
    with pytest.raises(RlbatchError, match="ValueError: no such thing"):
        RemoteVecEnv(partial(make, broken=True))
