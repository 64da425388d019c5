"""The simulator as a Gymnasium vector environment: no Python loop over the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlbatch.envs.arguments import action_grid, changes, known_options, require_render_mode
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.history import noise_scale
from rlbatch.envs.simulator.environment import pool_of
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import TaskPool
from rlbatch.envs.simulator.vector_env import copy_runs
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.signals.record import Signals

_Step = tuple[
    NDArray[np.float32],
    NDArray[np.float64],
    NDArray[np.bool_],
    NDArray[np.bool_],
    dict[str, Any],
]


class QuadraticGymVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """Simulated runs side by side, each as in `QuadraticEnv`.

    A run that has ended is replaced in the step after (Gymnasium's `AutoresetMode.NEXT_STEP`): its
    action is ignored there, its reward is 0, and the observation is the first of the new run.
    """

    metadata = {  # noqa: RUF012 - Gymnasium's convention
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        pool: TaskPool | None = None,
        *,
        actions: Sequence[float] = DEFAULT_ACTIONS,
        render_mode: str | None = None,
    ) -> None:
        """Prepare the environments.

        Args:
            num_envs: How many.
            pool: Tasks to draw from; None for a small pool of the default distribution.
            actions: Changes of log2(batch size).
            render_mode: None; many runs are not shown in one figure.

        Raises:
            ConfigurationError: An argument is out of range.
        """
        if num_envs < 1:
            raise ConfigurationError(f"num_envs must be at least 1, got {num_envs}.")
        require_render_mode(render_mode)
        if render_mode is not None:
            raise ConfigurationError(
                "Runs side by side are not rendered. Leave render_mode out, or make a single one."
            )
        self.num_envs, self.render_mode = num_envs, None
        self.actions_log2 = action_grid(actions)
        self.single_observation_space = gymnasium.spaces.Box(
            -1.0, 1.0, (OBSERVATION_SIZE,), np.float32
        )
        self.single_action_space = gymnasium.spaces.Discrete(len(self.actions_log2))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool = pool_of(pool)
        self._episodes: QuadraticEpisodes | None = None
        self._ended = np.zeros(num_envs, dtype=bool)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin every run and train its first chunk.

        Args:
            seed: Of all runs together; several numbers are taken as one seed.
            options: None is known.

        Raises:
            ConfigurationError: Of an option.
        """
        known_options(options)
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        elif seed is not None:
            self.np_random = np.random.default_rng(list(seed))
        self._ended[:] = False
        everything, info = np.arange(self.num_envs), self._empty_info()
        observation = np.zeros((self.num_envs, OBSERVATION_SIZE), dtype=np.float32)
        self._episodes, ended = self._fresh(everything, observation, info)
        self._replace(self._episodes, everything[ended], observation, info)
        return observation, _masked(info)

    def step(self, actions: NDArray[np.int64]) -> _Step:
        """Change the batch sizes and train a chunk of every run.

        Args:
            actions: Shape (num_envs,).

        Raises:
            ConfigurationError: There is no such action, or `reset` was not called.
        """
        episodes = self._episodes
        if episodes is None:
            raise ConfigurationError("No run is in progress. Call reset() first.")
        done = episodes.step(changes(self.actions_log2, actions, (self.num_envs,)))
        observation, reward = done.observation.copy(), np.asarray(done.reward, dtype=np.float64)
        terminated = done.reached | (done.ended & episodes.runs.diverged)
        truncated = done.ended & ~terminated
        spent = episodes.runs.cost / episodes.reference[episodes.task_index]
        info = self._empty_info()
        told = np.where(done.ended, done.ratio, spent), done.reached
        _tell(info, np.arange(self.num_envs), episodes, *told)
        fresh = np.flatnonzero(self._ended)
        if len(fresh):
            reward[fresh], terminated[fresh], truncated[fresh] = 0.0, False, False
            self._replace(episodes, fresh, observation, info)
        self._ended = terminated | truncated
        return observation, reward, terminated, truncated, _masked(info)

    def _replace(
        self,
        episodes: QuadraticEpisodes,
        index: NDArray[np.intp],
        observation: NDArray[np.float32],
        info: dict[str, NDArray[Any]],
    ) -> None:
        """Put new runs at these positions; one that is over within its first chunk is no run."""
        while len(index):
            fresh, ended = self._fresh(index, observation, info)
            copy_runs(fresh, episodes, index)
            index = index[ended]

    def _fresh(
        self,
        index: NDArray[np.intp],
        observation: NDArray[np.float32],
        info: dict[str, NDArray[Any]],
    ) -> tuple[QuadraticEpisodes, NDArray[np.bool_]]:
        """Return new runs after their first chunk, and which have ended; write what they show."""
        fresh = QuadraticEpisodes(self._pool, len(index), self.np_random)
        tasks = self.np_random.integers(len(self._pool), size=len(index))
        fresh.begin(np.arange(len(index)), tasks)
        first = fresh.step(None)
        observation[index] = first.observation
        _tell(info, index, fresh, fresh.runs.cost / fresh.reference[tasks], first.reached)
        return fresh, first.ended

    def _empty_info(self) -> dict[str, NDArray[Any]]:
        floats = ("train_loss", "val_loss", "noise_scale", "cost", "ratio")
        whole = ("task", "batch_size", "steps", "samples_seen")
        return {
            **{name: np.full(self.num_envs, np.nan) for name in floats},
            **{name: np.zeros(self.num_envs, dtype=np.int64) for name in whole},
            "reached": np.zeros(self.num_envs, dtype=bool),
        }


def _tell(
    info: dict[str, NDArray[Any]],
    index: NDArray[np.intp],
    episodes: QuadraticEpisodes,
    ratio: NDArray[np.float64],
    reached: NDArray[np.bool_],
) -> None:
    """Write what the last chunk of episodes showed at these positions."""
    signals = episodes.signals
    if not isinstance(signals, Signals):
        return
    shown = {
        "train_loss": signals.train_loss,
        "val_loss": signals.val_loss,
        "noise_scale": noise_scale(signals),
        "cost": signals.total_cost,
        "ratio": ratio,
        "task": episodes.task_index,
        "batch_size": episodes.batch_size,
        "steps": episodes.runs.steps,
        "samples_seen": episodes.runs.samples,
        "reached": reached,
    }
    for name, values in shown.items():
        info[name][index] = np.asarray(values)


def _masked(info: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Add where each entry is known, as Gymnasium's own vector environments do."""
    masks = {f"_{name}": ~np.isnan(values.astype(np.float64)) for name, values in info.items()}
    return {**info, **masks}
