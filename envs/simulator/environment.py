"""The simulator as a single Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.observation import OBSERVATION_SIZE

_POOL_SIZE, _POOL_SEED = 512, 7


@lru_cache(maxsize=1)
def _default_pool() -> TaskPool:
    return make_pool(_POOL_SIZE, _POOL_SEED)


class QuadraticEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One simulated run at a time, on random tasks.

    Observation, action, reward and ends are those of `BatchSizeEnv`.
    """

    metadata = {"render_modes": [], "render_fps": 4}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        pool: TaskPool | None = None,
        *,
        actions: Sequence[float] = DEFAULT_ACTIONS,
        render_mode: str | None = None,
    ) -> None:
        """Prepare an environment.

        Args:
            pool: Tasks to draw from; None for a small pool of the default distribution.
            actions: Changes of log2(batch size).
            render_mode: None.
        """
        self.actions_log2 = tuple(float(a) for a in actions)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(self.actions_log2))
        self.render_mode = render_mode
        self._pool = pool or _default_pool()
        self._episodes: QuadraticEpisodes | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a run on a random task and train its first chunk."""
        super().reset(seed=seed)
        while True:
            self._episodes = QuadraticEpisodes(self._pool, 1, self.np_random)
            self._episodes.begin(
                np.zeros(1, dtype=np.int64), self.np_random.integers(len(self._pool), size=1)
            )
            first = self._episodes.step(None)
            if not first.ended[0]:
                return first.observation[0], self._info()

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change the batch size and train one chunk."""
        if self._episodes is None:
            raise RuntimeError("No run is in progress. Call reset() first.")
        done = self._episodes.step(np.array([self.actions_log2[int(action)]]))
        reached, ended = bool(done.reached[0]), bool(done.ended[0])
        diverged = ended and bool(self._episodes.runs.diverged[0])
        info = self._info()
        if ended:
            info["ratio"], info["reached"] = float(done.ratio[0]), reached
        terminated = reached or diverged
        return (
            done.observation[0],
            float(done.reward[0]),
            terminated,
            ended and not terminated,
            info,
        )

    def _info(self) -> dict[str, Any]:
        episodes = self._episodes
        if episodes is None:
            return {}
        spent = episodes.runs.cost[0] / episodes.reference[episodes.task_index[0]]
        return {
            "batch_size": int(episodes.batch_size[0]),
            "steps": int(episodes.runs.steps[0]),
            "ratio": float(spent),
        }
