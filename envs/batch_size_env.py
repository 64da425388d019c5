"""The Gymnasium environment around a real training run: one step is one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlbatch import observation
from rlbatch.envs.arguments import (
    RENDER_MODES,
    action_grid,
    changes,
    coupling_of,
    drawn_setting,
    known_options,
    profile_of,
    require_render_mode,
    require_source,
    start_batch_size,
)
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.fixed_source import FixedSource
from rlbatch.envs.history import History, render
from rlbatch.envs.live import LiveRun
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.envs.spaces import action_space, observation_space
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling, Signals

DEFAULT_ACTIONS: tuple[float, ...] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Changes of log2(batch size) that the actions stand for."""

SettingSource = Callable[[np.random.Generator], EpisodeSetting]


class BatchSizeEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """An in-progress training run as an environment.

    * Observation: `rlbatch.observation`, float32 in [-1, 1].
    * Action: index into a grid of changes of log2(batch size).
    * Reward: minus what the chunk added to the `disutility` of the ratio of cost to reference cost.
      That is the ratio up to 1 and `1 + ln(ratio)` beyond; a run whose target is not reached ends
      at the ratio `UNREACHED_RATIO`.
    * terminated: target reached, or diverged. truncated: the cost limit is spent.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        task: str | Task = "digits-mlp",
        *,
        lr_coupling: str | Coupling = "sqrt",
        profile: str | DeviceProfile = "cpu",
        start: float = 1.0,
        actions: Sequence[float] = DEFAULT_ACTIONS,
        planned_steps: int | None = None,
        source: SettingSource | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Prepare an environment; the run itself begins with `reset`.

        Args:
            task: A task, its name, or `file.py:function`.
            lr_coupling: `none`, `sqrt`, `linear` or `adascale`.
            profile: A device profile, its name, a JSON file of one, or `wall` for this machine's
                clock.
            start: First batch size relative to the task's.
            actions: Changes of log2(batch size).
            planned_steps: Steps at the task's batch size for which its learning rate schedule is
                made; needed where it has one.
            source: Draws the setting of each episode instead (a callable of a NumPy generator).
            render_mode: None, `ansi` or `rgb_array`.

        Raises:
            ConfigurationError: An argument is out of range.
            UnknownNameError: There is no such task, coupling or profile.
        """
        require_render_mode(render_mode)
        self.actions_log2 = action_grid(actions)
        self.observation_space = observation_space()
        self.action_space = action_space(self.actions_log2)
        self.render_mode = render_mode
        if source is None:
            given = coupling_of(lr_coupling), profile_of(profile), start, planned_steps
            source = FixedSource(task, *given)
        require_source(source)
        self._source = source
        self._episode: LiveEpisode | None = None
        self._history = History()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a run and train its first chunk at the start batch size.

        Args:
            seed: Of this run and those that follow.
            options: `{"start": ...}`, for this run instead of the environment's own.

        Raises:
            ConfigurationError: Of an option that is not known, or out of range.
        """
        super().reset(seed=seed)
        given = known_options(options, "start")
        while True:
            setting = drawn_setting(self._source(self.np_random))
            if "start" in given:
                first = start_batch_size(resolve_task(setting.task), given["start"])
                setting = replace(setting, start_batch_size=first)
            self._episode = LiveEpisode(setting)
            # A run that is over within its first chunk leaves nothing to decide.
            if not self.run.finished:
                break
        self._state, self._history = observation.initial_state(), History()
        return self._encode(self._episode.first), self._info()

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change the batch size and train one chunk.

        Raises:
            ConfigurationError: There is no such action, or no run in progress.
        """
        step = self.episode.step(float(changes(self.actions_log2, action)))
        seen = self._encode(step.signals)
        return seen, step.reward, step.terminated, step.truncated, self._info()

    @property
    def episode(self) -> LiveEpisode:
        """The episode in progress."""
        if self._episode is None:
            raise ConfigurationError("No run is in progress. Call reset() first.")
        return self._episode

    @property
    def run(self) -> LiveRun:
        """The run in progress."""
        return self.episode.run

    @property
    def ratio(self) -> float:
        """Cost so far over the reference cost."""
        return self.episode.ratio

    def _encode(self, signals: Signals) -> NDArray[np.float32]:
        seen, self._state = observation.encode(signals, self._state)
        self._history.note(signals, self.run.batch_size)
        return seen

    def _info(self) -> dict[str, Any]:
        return {**self._history.latest, **self.episode.info()}

    def render(self) -> Any:
        """Return the run so far: a line in the mode `ansi`, a figure in `rgb_array`."""
        return render(
            self._history, {} if self._episode is None else self._info(), self.render_mode
        )
