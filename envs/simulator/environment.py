"""The simulator as a single Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.arguments import (
    RENDER_MODES,
    action_grid,
    changes,
    known_options,
    require_render_mode,
)
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.history import History, render
from rlbatch.envs.simulator.episodes import QuadraticEpisodes, Transition
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.envs.spaces import action_space, observation_space
from rlbatch.errors import ConfigurationError

_POOL_SIZE, _POOL_SEED = 512, 7


@lru_cache(maxsize=1)
def default_pool() -> TaskPool:
    """Return a small pool of the default distribution."""
    return make_pool(_POOL_SIZE, _POOL_SEED)


def pool_of(pool: TaskPool | None) -> TaskPool:
    """Return the pool to draw from, a small one of the default distribution for None.

    Raises:
        ConfigurationError: It is no pool.
    """
    if pool is not None and not isinstance(pool, TaskPool):
        raise ConfigurationError(
            f"pool must be a TaskPool or None, got {pool!r}. Make one with "
            "rlbatch.envs.simulator.pool.make_pool."
        )
    return default_pool() if pool is None else pool


class QuadraticEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One simulated run at a time, on random tasks.

    Observation, action, reward and ends are those of `BatchSizeEnv`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 - Gymnasium's convention

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
            render_mode: None, `ansi` or `rgb_array`.

        Raises:
            ConfigurationError: An argument is out of range.
        """
        require_render_mode(render_mode)
        self.actions_log2 = action_grid(actions)
        self.observation_space = observation_space()
        self.action_space = action_space(self.actions_log2)
        self.render_mode = render_mode
        self._pool = pool_of(pool)
        self._episodes: QuadraticEpisodes | None = None
        self._last: Transition | None = None
        self._history = History()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a run on a random task and train its first chunk.

        Args:
            seed: Of this run and those that follow.
            options: `{"task": NUMBER}`, to run this task of the pool instead of a random one.

        Raises:
            ConfigurationError: Of an option that is not known, or out of range.
        """
        super().reset(seed=seed)
        given = known_options(options, "task")
        count = len(self._pool)
        if "task" in given and given["task"] not in range(count):
            raise ConfigurationError(
                f"The option task is the number of a simulated task, from 0 to {count - 1}; got "
                f"{given['task']!r}."
            )
        while True:
            task = int(given["task"]) if "task" in given else self.np_random.integers(count)
            self._episodes = QuadraticEpisodes(self._pool, 1, self.np_random)
            self._episodes.begin(np.zeros(1, dtype=np.int64), np.array([task]))
            self._history = History()
            self._last = self._episodes.step(None)
            if not self._last.ended[0]:
                return self._last.observation[0], self._info(self._last)

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change the batch size and train one chunk.

        Raises:
            ConfigurationError: There is no such action, or no run in progress.
        """
        if self._episodes is None or self._last is None:
            raise ConfigurationError("No run is in progress. Call reset() first.")
        if self._last.ended[0]:
            raise ConfigurationError("This run has finished. Start a new one with reset().")
        done = self._last = self._episodes.step(changes(self.actions_log2, action)[None])
        terminated = bool(done.reached[0] or (done.ended[0] and self._episodes.runs.diverged[0]))
        truncated = bool(done.ended[0]) and not terminated
        info = self._info(done)
        return done.observation[0], float(done.reward[0]), terminated, truncated, info

    def render(self) -> Any:
        """Return the run so far: a line in the mode `ansi`, a figure in `rgb_array`."""
        info = {} if self._last is None else self._told(self._last)
        return render(self._history, info, self.render_mode)

    def _info(self, done: Transition) -> dict[str, Any]:
        """Note the chunk, and return what is told of it."""
        episodes = self._episodes
        if episodes is not None and episodes.signals is not None:
            self._history.note(episodes.signals, float(episodes.batch_size[0]))
        return self._told(done)

    def _told(self, done: Transition) -> dict[str, Any]:
        episodes = self._episodes
        if episodes is None:
            return {}
        spent = episodes.runs.cost[0] / episodes.reference[episodes.task_index[0]]
        return {
            **self._history.latest,
            "task": int(episodes.task_index[0]),
            "batch_size": int(episodes.batch_size[0]),
            "steps": int(episodes.runs.steps[0]),
            "samples_seen": int(episodes.runs.samples[0]),
            "ratio": float(done.ratio[0] if done.ended[0] else spent),
            "reached": bool(done.reached[0]),
        }
