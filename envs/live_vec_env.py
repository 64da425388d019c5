"""Many real runs as one vector environment: trained one after the other, observed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rlbatch import observation
from rlbatch.envs.episode import EpisodeStep, LiveEpisode
from rlbatch.envs.local_vec_env import LocalVecEnv
from rlbatch.envs.privileged import PRIVILEGED_SIZE, PrivilegedRow, privileged_information
from rlbatch.signals.record import RunContext, Signals

SettingSource = Callable[[np.random.Generator], Any]


class Episode(Protocol):
    """A run in progress, with its reward."""

    first: Signals

    @property
    def usable(self) -> bool:
        """There is something to decide."""
        ...

    def step(self, log2_change: float) -> EpisodeStep:
        """Change the batch size and train one chunk."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what loggers want to know."""
        ...

    def privileged_row(self) -> PrivilegedRow:
        """Return what the critic is told."""
        ...

    def regrets(self, log2_changes: Sequence[float]) -> np.ndarray:
        """Return `rlbatch.envs.privileged.regrets` of these changes; zeros if nothing is known."""
        ...


class LiveVecEnv(LocalVecEnv):
    """Episodes of real runs in this process; one that ends is replaced at once.

    Encoding the observations of all runs in one call is what makes it faster than as many
    `BatchSizeEnv`s, of which each encodes its own.
    """

    def __init__(
        self,
        source: SettingSource,
        count: int,
        seed: int,
        actions: Sequence[float],
        *,
        make: Callable[..., Episode] = LiveEpisode,
        privileged: bool = False,
    ) -> None:
        """Prepare `count` environments.

        Args:
            source: Draws the setting of each episode.
            count: Number of environments.
            seed: Of the draws.
            actions: Changes of log2(batch size), one for each discrete action.
            make: Begins an episode under a setting.
            privileged: Append privileged information (`rlbatch.envs.privileged`) to the
                observations, the regret of each action included.
        """
        size = observation.OBSERVATION_SIZE + privileged * (PRIVILEGED_SIZE + len(actions))
        space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        super().__init__(count, space, gymnasium.spaces.Discrete(len(actions)))
        self._actions_log2 = [float(action) for action in actions]
        self._privileged = privileged
        self._source, self._make, self._rng = source, make, np.random.default_rng(seed)
        self._episodes: list[Episode] = []
        self._state = observation.initial_state((count,))
        self._returns, self._lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._decided: Sequence[int] = ()

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment."""
        self._episodes = [self._begin() for _ in range(self.num_envs)]
        self._returns[:], self._lengths[:] = 0.0, 0
        first = stack([episode.first for episode in self._episodes])
        seen, self._state = observation.encode(first, observation.initial_state((self.num_envs,)))
        return self._with_privileged(seen)

    def _begin(self) -> Episode:
        while True:
            episode = self._make(self._source(self._rng))
            if episode.usable:
                return episode

    def step_async(self, actions: np.ndarray) -> None:
        """Take the decisions."""
        self._decided = [int(action) for action in actions]

    def step_wait(self) -> VecEnvStepReturn:
        """Train a chunk of every run; restart those that ended."""
        steps = [
            episode.step(self._actions_log2[action])
            for episode, action in zip(self._episodes, self._decided, strict=True)
        ]
        seen, self._state = observation.encode(stack([s.signals for s in steps]), self._state)
        rewards = np.array([step.reward for step in steps])
        ended = np.array([step.terminated or step.truncated for step in steps])
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in steps]
        for i in np.flatnonzero(ended):
            infos[i] = {
                **self._episodes[i].info(),
                "terminal_observation": self._with_privileged(seen)[i].copy(),
                # The cost limit is part of the task, and its penalty was paid: no bootstrapping.
                "TimeLimit.truncated": False,
                "episode": {"r": self._returns[i], "l": int(self._lengths[i]), "t": 0.0},
            }
        if ended.any():
            self._replace(np.flatnonzero(ended), seen)
        return self._with_privileged(seen), rewards.astype(np.float32), ended, infos

    def _with_privileged(self, seen: np.ndarray) -> np.ndarray:
        if not self._privileged:
            return seen
        rows = np.array([episode.privileged_row() for episode in self._episodes])
        regrets = np.stack([episode.regrets(self._actions_log2) for episode in self._episodes])
        return np.concatenate([seen, privileged_information(*rows.T), regrets], axis=1)

    def _replace(self, index: np.ndarray, seen: np.ndarray) -> None:
        for i in index:
            self._episodes[i] = self._begin()
        self._returns[index], self._lengths[index] = 0.0, 0
        first = stack([self._episodes[i].first for i in index])
        seen[index], state = observation.encode(first, observation.initial_state((len(index),)))
        for values, fresh in zip(self._state, state, strict=True):
            values[index] = fresh


def stack(signals: Sequence[Signals]) -> Signals:
    """Return the signals of several runs as one, with a leading axis."""
    contexts = [one.context for one in signals]
    context = replace(contexts[0], **_columns(contexts, [f.name for f in fields(RunContext)]))
    names = [f.name for f in fields(Signals) if f.name != "context"]
    return replace(signals[0], context=context, **_columns(signals, names))


def _columns(rows: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in names
    }
