"""The Gymnasium environment around a real training run: one step is one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlbatch import observation
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import LiveRun
from rlbatch.envs.profiles import CostWeights, DeviceProfile, resolve_profile, step_cost
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling, Signals

DEFAULT_ACTIONS: tuple[float, ...] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Changes of log2(batch size) that the actions stand for."""

_LONGEST_DEFAULT_RUN = 20_000  # optimizer steps after which a task's target counts as out of reach

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

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        task: str = "digits-mlp",
        *,
        lr_coupling: str = "sqrt",
        profile: str = "cpu",
        start: float = 1.0,
        actions: Sequence[float] = DEFAULT_ACTIONS,
        source: SettingSource | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Prepare an environment; the run itself begins with `reset`.

        Args:
            task: Name of a task, or `file.py:function`.
            lr_coupling: `none`, `sqrt`, `linear` or `adascale`.
            profile: Name of a device profile, or `wall` for this machine's clock.
            start: First batch size relative to the task's.
            actions: Changes of log2(batch size).
            source: Draws the setting of each episode instead (a callable of a NumPy generator).
            render_mode: None or `ansi`.
        """
        if not actions or not all(np.isfinite(actions)):
            raise ConfigurationError(
                f"actions must be finite changes of log2(batch size), got {actions!r}."
            )
        self.actions_log2 = tuple(float(a) for a in actions)
        self.observation_space = gymnasium.spaces.Box(
            -1.0, 1.0, (observation.OBSERVATION_SIZE,), np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(len(self.actions_log2))
        self.render_mode = render_mode
        self._source = source or _FixedSource(task, Coupling(lr_coupling), _profile(profile), start)
        self._episode: LiveEpisode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a run and train its first chunk at the start batch size."""
        super().reset(seed=seed)
        while True:
            self._episode = LiveEpisode(self._source(self.np_random))
            # A run that is over within its first chunk leaves nothing to decide.
            if not self.run.finished:
                break
        self._state = observation.initial_state()
        return self._encode(self._episode.first), self._episode.info()

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change the batch size and train one chunk."""
        episode = self.episode
        step = episode.step(self.actions_log2[int(action)])
        seen = self._encode(step.signals)
        return seen, step.reward, step.terminated, step.truncated, episode.info()

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
        return seen

    def render(self) -> str | None:
        """One line about the run, in `ansi` mode."""
        if self.render_mode != "ansi":
            return None
        run = self.run
        where = f"step {run.steps}  samples {run.samples_seen}"
        return f"{where}  batch size {run.batch_size}  loss {run.val_loss:.4g}"


class _FixedSource:
    """The same setting every time, with a new seed.

    Its reward is in units of the default batch size's cost.
    """

    def __init__(
        self, task: str, coupling: Coupling, profile: DeviceProfile | None, start: float
    ) -> None:
        self._task_name, self._coupling, self._profile = task, coupling, profile
        self._task = resolve_task(task)
        size: int = len(self._task.train_set)  # type: ignore[arg-type]
        largest = self._task.max_batch_size or size
        self._start = int(np.clip(round(self._task.batch_size * start), 1, largest))
        self._reference: float | None = None

    def __call__(self, rng: np.random.Generator) -> EpisodeSetting:
        if self._reference is None:
            self._reference = self._default_cost()
        return EpisodeSetting(
            task=self._task_name,
            seed=int(rng.integers(2**31)),
            coupling=self._coupling,
            profile=self._profile,
            target_loss=self._task.target,
            start_batch_size=self._start,
            reference_cost=self._reference,
        )

    def _default_cost(self) -> float:
        curve = fixed_run_curve(
            self._task,
            self._task.batch_size,
            seed=0,
            coupling=self._coupling,
            target_loss=self._task.target,
            max_steps=_LONGEST_DEFAULT_RUN,
        )
        if not curve.reached:
            raise ConfigurationError(
                f"Task {self._task_name!r}: the default batch size {self._task.batch_size} did not "
                f"reach the target {self._task.target} in {_LONGEST_DEFAULT_RUN} steps. "
                "Choose an easier target."
            )
        clock = self._profile or resolve_profile("cpu")
        return float(
            curve.steps[-1]
            * step_cost(clock, CostWeights(), self._task.batch_size, self._task.batch_size)
        )


def _profile(name: str) -> DeviceProfile | None:
    return None if name == "wall" else resolve_profile(name)
