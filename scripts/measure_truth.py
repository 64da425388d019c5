"""What a policy reaches in simulated runs that is told what no policy can know.

    python scripts/measure_truth.py [--timesteps 6000000] [--tasks 2000]

Trains as the recipe `simulated` does, with a policy that is shown what its critic is
(`rlbatch.envs.privileged`): the reference cost, the best fixed batch size, and what the size of
every action would cost. It knows all that looking around could tell, still begins somewhere else,
and measures. So no policy without that knowledge can be expected to be better on unseen tasks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import numpy as np
from ablate import summary  # beside this file
from stable_baselines3 import PPO

from rlbatch.agents.evaluate.simulated import POOL_SEED
from rlbatch.agents.ppo import make_model
from rlbatch.agents.recipes import resolve_recipe
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.envs.threads import use_one_thread

RECIPE = replace(resolve_recipe("simulated"), privileged_critic=False)  # no split of what nets see
EPISODES = 4  # of every run side by side, so that short ones do not count more often


def main() -> None:
    """Train, and print the ratio on unseen tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=6_000_000)
    parser.add_argument("--tasks", type=int, default=2_000)
    arguments = parser.parse_args()
    use_one_thread()
    model = trained(arguments.timesteps)
    ratios = unseen(model, make_pool(arguments.tasks, POOL_SEED))
    print(f"told the truth: {summary(ratios)}, {len(ratios)} runs")


def environment(pool: TaskPool, count: int, seed: int) -> QuadraticVecEnv:
    """Runs whose observations hold the truth."""
    return QuadraticVecEnv(
        pool,
        count,
        seed,
        RECIPE.actions,
        privileged=True,
        make=partial(QuadraticEpisodes, noise_rate=RECIPE.noise_rate),
    )


def trained(timesteps: int) -> PPO:
    """Train by the recipe's stage, without its split into what actor and critic see."""
    (stage,) = RECIPE.stages
    pool = make_pool(RECIPE.pool_size, RECIPE.seed + 100)
    env = environment(pool, stage.simulated, RECIPE.seed)
    model = make_model(RECIPE, stage, env, None, "cpu", seed=RECIPE.seed)
    model.lr_schedule = lambda left: stage.learning_rate * max(left, 0.05)
    return model.learn(timesteps)


def unseen(model: PPO, pool: TaskPool) -> list[float]:
    """Cost over the reference cost of `EPISODES` times half as many runs as there are tasks."""
    env = environment(pool, len(pool) // 2, seed=5)
    told, ended = env.reset(), np.zeros(env.num_envs, dtype=int)
    ratios: list[float] = []
    while (ended < EPISODES).any():
        actions, _ = model.predict(told, deterministic=True)  # pyright: ignore[reportArgumentType]
        told, _, done, infos = env.step(actions)
        for run in np.flatnonzero(done):
            if ended[run] < EPISODES:
                info = infos[run]
                ratio = info["ratio"] if info["reached"] else UNREACHED_RATIO
                ratios.append(min(ratio, UNREACHED_RATIO))
            ended[run] += 1
    return ratios


if __name__ == "__main__":
    main()
