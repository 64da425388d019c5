"""Both environments keep the contract; one that rewards is caught."""

from typing import Any

import pytest

from rlbatch.envs.batch_size_env import BatchSizeEnv
from rlbatch.envs.simulator.environment import QuadraticEnv
from rlbatch.testing.environment_contract import EnvironmentContract


class TestLive(EnvironmentContract):
    def make_environment(self) -> BatchSizeEnv:
        return BatchSizeEnv()


class TestQuadratic(EnvironmentContract):
    def make_environment(self) -> QuadraticEnv:
        return QuadraticEnv()


class _Rewarding(QuadraticEnv):
    def step(self, action: Any) -> Any:
        vector, reward, terminated, truncated, info = super().step(action)
        return vector, -reward, terminated, truncated, info


def test_a_reward_for_spending_is_caught() -> None:
    contract = EnvironmentContract()
    contract.make_environment = _Rewarding
    with pytest.raises(AssertionError):
        contract.test_an_episode_ends_and_every_step_costs()
