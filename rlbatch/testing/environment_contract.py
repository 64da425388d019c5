"""The contract of an environment, as a pytest class to subclass."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from rlbatch.observation import OBSERVATION_SIZE


class EnvironmentContract:
    """Subclass it, name the subclass `Test...` and override `make_environment`."""

    longest_episode = 2000
    """Steps after which an episode must have ended under random actions."""

    def make_environment(self) -> gymnasium.Env[Any, Any]:
        """Return a fresh environment, unwrapped."""
        raise NotImplementedError

    def test_gymnasium_finds_nothing(self) -> None:
        """Gymnasium's own checker passes without a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(self.make_environment(), skip_render_check=True)

    def test_observations_are_those_of_the_encoder(self) -> None:
        """Bounded float32 vectors of the schema's size."""
        environment = self.make_environment()
        space = environment.observation_space
        assert space.shape == (OBSERVATION_SIZE,)
        vector, _ = environment.reset(seed=0)
        for _ in range(5):
            assert space.contains(vector)
            vector, _, terminated, truncated, _ = environment.step(
                environment.action_space.sample()
            )
            if terminated or truncated:
                break

    def test_equal_seeds_give_equal_episodes(self) -> None:
        """Bit by bit, rewards and ends included."""
        episodes = [self._episode(seed=3) for _ in range(2)]
        assert len(episodes[0]) == len(episodes[1])
        for one, other in zip(*episodes, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1:] == other[1:]

    def test_an_episode_ends_and_every_step_costs(self) -> None:
        """Rewards are finite and never positive; the end is of one kind."""
        steps = self._episode(seed=1)
        assert len(steps) < self.longest_episode
        rewards = np.array([reward for _, reward, _, _ in steps])
        assert np.isfinite(rewards).all()
        assert (rewards <= 0).all()
        _, _, terminated, truncated = steps[-1]
        assert terminated != truncated

    def _episode(self, seed: int) -> list[tuple[Any, float, bool, bool]]:
        environment = self.make_environment()
        rng = np.random.default_rng(seed)
        environment.reset(seed=seed)
        count: int = environment.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
        steps: list[tuple[Any, float, bool, bool]] = []
        for _ in range(self.longest_episode):
            vector, reward, terminated, truncated, _ = environment.step(rng.integers(count))
            steps.append((vector, float(reward), terminated, truncated))
            if terminated or truncated:
                break
        return steps
