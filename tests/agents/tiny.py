"""A training of seconds, and its beginning."""

import torch
from stable_baselines3 import PPO

from rlbatch.agents.critic import InformedCriticPolicy
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.envs.quadratic.pool import make_pool
from rlbatch.envs.quadratic.vector_env import QuadraticVecEnv
from rlbatch.envs.truth import TRUTH_SIZE

ROLLOUT = 64 * 32
HIDDEN_SIZE = TRUTH_SIZE + 7  # and the regret of each action
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


def untrained(informed: bool) -> PPO:
    """A model of its layers, whose critic is told the truth or not."""
    pool = make_pool(8, 0)
    env = QuadraticVecEnv(pool, 2, 0, TINY.actions, informed=informed)
    layers = {"pi": list(TINY.policy_layers), "vf": list(TINY.value_layers)}
    return PPO(
        InformedCriticPolicy if informed else "MlpPolicy",
        env,
        n_steps=8,
        batch_size=16,
        device="cpu",
        policy_kwargs={"net_arch": layers, "activation_fn": torch.nn.ReLU},
    )
