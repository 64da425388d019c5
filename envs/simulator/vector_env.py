"""Stable-Baselines3 vector environment over the simulator: no Python loop over runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rlbatch.envs.local_vec_env import LocalVecEnv
from rlbatch.envs.privileged import PRIVILEGED_SIZE, privileged_information, regrets
from rlbatch.envs.simulator.episodes import QuadraticEpisodes, Transition
from rlbatch.envs.simulator.pool import TaskPool
from rlbatch.observation import OBSERVATION_SIZE, step_cost_at


class QuadraticVecEnv(LocalVecEnv):
    """Episodes on random tasks of a pool; one that ends is replaced at once, as SB3 has it."""

    def __init__(
        self,
        pool: TaskPool,
        count: int,
        seed: int,
        actions: Sequence[float],
        *,
        privileged: bool = False,
        with_regrets: bool = True,
        make: Callable[..., QuadraticEpisodes] = QuadraticEpisodes,
    ) -> None:
        """Prepare `count` environments.

        Args:
            pool: Tasks to draw from.
            count: Number of environments.
            seed: Seed of the draws and of the measurement noise.
            actions: Changes of log2(batch size), one for each discrete action.
            privileged: Append privileged information (`rlbatch.envs.privileged`) to the
                observations, the regret of each action included.
            with_regrets: Or else zeros instead of them: where something better is known.
            make: Makes episodes, with the arguments of `QuadraticEpisodes`.
        """
        size = OBSERVATION_SIZE + privileged * (PRIVILEGED_SIZE + len(actions))
        space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        super().__init__(count, space, gymnasium.spaces.Discrete(len(actions)))
        self._privileged, self._tells_regrets = privileged, with_regrets
        self.pool, self.actions_log2 = pool, np.asarray(actions, dtype=np.float64)
        self.rng = np.random.default_rng(seed)
        self.episodes = make(pool, count, self.rng)
        # New episodes in store, their first chunks done; `_used` of them are taken.
        self._fresh, self._used = make(pool, count, self.rng), count
        self.returns, self.lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._decided = np.zeros(count, dtype=np.int64)
        self._observation = np.zeros((count, OBSERVATION_SIZE), dtype=np.float32)
        self._first: Transition

    def reset(self) -> np.ndarray:
        """Start every episode; returns the observations after each first chunk."""
        # Episodes are spread over their length, or else all of them would end in the same rollout.
        self._begin(np.arange(self.num_envs))
        return self._with_privileged(self._observation)

    def _with_privileged(self, seen: np.ndarray) -> np.ndarray:
        if not self._privileged:
            return seen.copy()
        episodes, pool = self.episodes, self.pool
        index, size = episodes.task_index, np.asarray(episodes.batch_size, dtype=np.float64)
        base = pool.tasks.base_batch_size[index]
        costs, reference = pool.fixed_cost[index], pool.reference_cost[index]
        sizes, now = np.arange(costs.shape[1]), np.log2(size)
        nearest = np.abs(sizes - now[:, None]).argmin(axis=1)
        step = 2.0 ** step_cost_at(pool.tasks.step_cost_curve[index], np.log2(base))
        hidden = privileged_information(
            episodes.runs.cost / reference,
            reference / step,
            np.exp2(costs.argmin(axis=1).astype(np.float64)),
            size,
            base,
            costs[np.arange(len(costs)), nearest] / reference,
        )
        return np.concatenate([seen, hidden, self._regrets(index, now)], axis=1)

    def _regrets(self, index: np.ndarray, now: np.ndarray) -> np.ndarray:
        if not self._tells_regrets:
            return np.zeros((len(index), len(self.actions_log2)), dtype=np.float32)
        tasks = self.pool.tasks
        limits = tasks.min_batch_size[index], tasks.max_batch_size[index]
        low, high = (np.log2(limit)[:, None] for limit in limits)
        wanted = np.clip(now[:, None] + self.actions_log2, low, high)
        return regrets(self.pool.fixed_cost[index], 0.0, now, wanted)

    def _begin(self, index: np.ndarray) -> None:
        """Put new episodes at these positions, whose first chunks are done."""
        while len(index):
            if self._used == self.num_envs:
                self._refill()
            now, index = np.split(index, [self.num_envs - self._used])
            taken = np.arange(self._used, self._used + len(now))
            self._used += len(now)
            self._observation[now] = self._first.observation[taken]
            self.returns[now], self.lengths[now] = self._first.reward[taken], 0
            copy_runs(self._fresh, self.episodes, now, taken)

    def _refill(self) -> None:
        """Run as many first chunks at once as there are environments: few cost as much as many."""
        everything = np.arange(self.num_envs)
        self._fresh.begin(everything, self.rng.integers(len(self.pool), size=self.num_envs))
        self._first, self._used = self._fresh.step(None), 0

    def step_async(self, actions: np.ndarray) -> None:
        """Take the decisions."""
        self._decided = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Train a chunk of every run; restart those that ended."""
        transition = self.episodes.step(self.actions_log2[self._decided])
        self.returns += transition.reward
        self.lengths += 1
        self._observation = transition.observation
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(transition.ended)
        if len(ended):
            final = self._with_privileged(transition.observation)
            for i in ended:
                infos[i] = {
                    "terminal_observation": final[i],
                    "TimeLimit.truncated": False,
                    "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i]), "t": 0.0},
                    "ratio": float(transition.ratio[i]),
                    "reached": bool(transition.reached[i]),
                }
            self._begin(ended)
        return (
            self._with_privileged(self._observation),
            transition.reward.astype(np.float32),
            transition.ended.copy(),
            infos,
        )


def copy_runs(
    source: QuadraticEpisodes,
    target: QuadraticEpisodes,
    index: np.ndarray,
    taken: np.ndarray | slice = slice(None),
) -> None:
    """Copy every per-run array of `source` to positions of `target`, the tasks' included.

    Args:
        source: Where the runs are.
        target: Where they go.
        index: Positions there.
        taken: Which runs; as many.
    """
    owners = (source, target), (source.runs, target.runs), (source.runs.tasks, target.runs.tasks)
    for owner, other in owners:
        for name, values in vars(owner).items():
            if isinstance(values, np.ndarray) and name != "reference":
                getattr(other, name)[index] = values[taken]
    for values, current in zip(source.state, target.state, strict=True):
        current[index] = values[taken]
