"""A training of seconds, and its beginning."""

from typing import Any

import torch
from stable_baselines3 import PPO

from rlbatch.agents.critic import PrivilegedCriticPolicy
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.agents.regret_ppo import RegretPPO
from rlbatch.envs.privileged import PRIVILEGED_SIZE
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv

ROLLOUT = 64 * 32
HIDDEN_SIZE = PRIVILEGED_SIZE + 7  # and the regret of each action
TINY = Recipe(
    "tiny",
    (
        Stage(
            timesteps=2 * ROLLOUT, simulated=64, real=0, rollout_steps=32, minibatch=512, epochs=1
        ),
    ),
    pool_size=64,
    goodput_slack=None,  # the network alone decides
)


def untrained(privileged: bool, algorithm: type[PPO] = RegretPPO, **settings: Any) -> Any:
    """A model of its layers, whose critic is told the truth or not."""
    pool = make_pool(8, 0)
    env = QuadraticVecEnv(pool, 2, 0, TINY.actions, privileged=privileged)
    layers = {"pi": list(TINY.policy_layers), "vf": list(TINY.value_layers)}
    return algorithm(
        PrivilegedCriticPolicy if privileged else "MlpPolicy",
        env,
        n_steps=8,
        batch_size=16,
        device="cpu",
        policy_kwargs={"net_arch": layers, "activation_fn": torch.nn.ReLU},
        **settings,
    )
