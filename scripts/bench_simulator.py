"""Print the simulator's speed in environment steps per second, at 1,024 runs side by side.

    python scripts/bench_simulator.py [--runs 1024] [--repeats 7]

One thread; medians over repeats, since other work on a machine makes single ones slow.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from stable_baselines3 import PPO

from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.envs.threads import use_one_thread

_STEPS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    use_one_thread()
    count: int = arguments.runs
    pool = make_pool(2048, seed=0)
    rng = np.random.default_rng(0)
    episodes = QuadraticEpisodes(pool, count, rng)
    episodes.begin(np.arange(count), rng.integers(len(pool), size=count))
    env = QuadraticVecEnv(pool, count, seed=0, actions=DEFAULT_ACTIONS)
    env.reset()
    changes = rng.choice([-1.0, 0.0, 1.0], size=(_STEPS, count))
    actions = rng.integers(len(DEFAULT_ACTIONS), size=(_STEPS, count))
    model = PPO(
        "MlpPolicy", env, n_steps=_STEPS, batch_size=4096, n_epochs=6, device="cpu",
        policy_kwargs={"net_arch": {"pi": [96, 96], "vf": [128, 128]}},
    )  # fmt: skip

    def dynamics() -> None:
        for _ in range(_STEPS):
            episodes.runs.advance(episodes.batch_size)

    def encoded() -> None:
        for change in changes:
            episodes.step(change)

    def environment() -> None:
        for action in actions:
            env.step(action)

    def learning() -> None:
        model.learn(_STEPS * count)

    for name, work in (
        ("dynamics and signals", dynamics),
        ("+ observation, reward and ends", encoded),
        ("+ episodes that begin anew (vector environment)", environment),
        ("+ PPO's decisions and updates", learning),
    ):
        print(f"{name:50s} {_rate(work, count, arguments.repeats):12,.0f} steps/s", flush=True)


def _rate(work: Callable[[], None], count: int, repeats: int) -> float:
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return _STEPS * count / statistics.median(seconds)


if __name__ == "__main__":
    main()
