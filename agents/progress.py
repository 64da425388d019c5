"""How far a training is: its checkpoints and its figures, once a rollout."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from rlbatch.agents.critic import PrivilegedCriticPolicy
from rlbatch.agents.imitation import Report
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.agents.regret_ppo import RegretPPO
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.tasks import RANDOM_KINDS
from rlbatch.errors import ConfigurationError
from rlbatch.files import replacing, write_atomically

CHECKPOINT, PROGRESS = "checkpoint.zip", "progress.json"

_LATEST = 400  # episodes of which a figure is the mean


def position(recipe: Recipe, out: Path, resume: bool) -> tuple[int, int]:
    """Return the stage that a folder's training is in, and the steps of it that are done.

    Raises:
        ConfigurationError: The folder holds another training, or there is nothing to resume.
    """
    progress = out / PROGRESS
    if not progress.exists():
        if resume:
            raise ConfigurationError(
                f"Nothing to resume in {out}: it holds no {PROGRESS}. Train without --resume."
            )
        return 0, 0
    if not resume:
        raise ConfigurationError(
            f"{out} already holds a training. Add --resume, or choose another folder."
        )
    try:
        state = json.loads(progress.read_text())
        digest, name = state["recipe"], state["name"]
        found = int(state["stage"]), int(state["timesteps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{progress} is damaged ({type(error).__name__}: {error}). Train in another folder; "
            f"--start-from {out / CHECKPOINT} begins with the weights of this one."
        ) from error
    if digest != recipe.digest():
        raise ConfigurationError(
            f"{out} holds a training by another recipe ({name!r}). Choose another folder."
        )
    return found


class EpisodeFigures:
    """Means over the latest episodes: returns, and ratios by family of tasks."""

    def __init__(self) -> None:
        """Of no episode yet."""
        self._returns: deque[float] = deque(maxlen=_LATEST)
        self._ratios: dict[str, deque[float]] = {}

    def note(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """Take the episodes that ended in a step of a vector environment."""
        for info in infos:
            if "episode" in info:
                self._returns.append(float(info["episode"]["r"]))
            if "ratio" in info:  # else it goes on, or its process died
                ratios = self._ratios.setdefault(_family(info), deque(maxlen=_LATEST))
                ratios.append(counted_ratio(info))

    def values(self) -> dict[str, float]:
        """Return the means by their names in TensorBoard."""
        figures = {
            f"ratio/{family}": geometric_mean(ratios) for family, ratios in self._ratios.items()
        }
        if self._returns:
            figures["rollout/return"] = float(np.mean(self._returns))
        return figures


def counted_ratio(info: Mapping[str, Any]) -> float:
    """Return an episode's ratio as results are counted."""
    return min(float(info["ratio"]), UNREACHED_RATIO) if info["reached"] else UNREACHED_RATIO


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean of ratios."""
    return float(np.exp(np.mean(np.log(np.maximum(list(ratios), 1e-3)))))


def _family(info: Mapping[str, Any]) -> str:
    """Return the family of an episode's task; the simulator's tasks have numbers."""
    name = info.get("task")
    if not isinstance(name, str):
        return "simulated"
    kind = name.partition(":")[0]
    return (kind if kind in RANDOM_KINDS else name).removesuffix("-sgd").replace("/", "_")


class Progress(BaseCallback):
    """Checkpoints, learning-rate decay and figures, once a rollout."""

    def __init__(
        self, stage: Stage, index: int, recipe: Recipe, out: Path, report: Report | None
    ) -> None:
        """Of a stage, which is the recipe's at that index; see `rlbatch.agents.ppo.train`."""
        super().__init__()
        self._stage, self._index, self._recipe, self._out, self._report = (
            stage,
            index,
            recipe,
            out,
            report,
        )
        self._ratios: dict[str, deque[float]] = {
            "real": deque(maxlen=400),
            "simulated": deque(maxlen=4000),
        }
        self._episodes = EpisodeFigures()
        self._begun, self._first = time.perf_counter(), 0

    def _on_training_start(self) -> None:
        self._first = self.num_timesteps

    def _on_step(self) -> bool:
        self._episodes.note(self.locals["infos"])
        for place, info in enumerate(self.locals["infos"]):
            if "ratio" not in info:  # goes on, or its process died
                continue
            kind = "real" if place < self._stage.real else "simulated"
            self._ratios[kind].append(counted_ratio(info))
        return True

    def _on_rollout_start(self) -> None:
        # The weights that this rollout is made with: saved here, a stop loses at most one rollout.
        if self.num_timesteps:
            save(self.model, self._out, self._recipe, self._index, self.num_timesteps)  # type: ignore[arg-type]
        left = 1.0 - self.num_timesteps / self._stage.timesteps
        rate = self._stage.learning_rate * max(left, 0.05)
        self.model.lr_schedule = lambda _: rate
        if isinstance(self.model, RegretPPO):
            self.model.regret_weight = self._stage.regret_weight * max(left, 0.0)

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        if isinstance(policy, PrivilegedCriticPolicy):
            policy.note(self.model.rollout_buffer.observations)  # type: ignore[attr-defined]
        seconds = time.perf_counter() - self._begun
        done = self.num_timesteps - self._first
        left = max(self._stage.timesteps - self.num_timesteps, 0) * seconds / max(done, 1)
        figures = {"timesteps": float(self.num_timesteps), "seconds": seconds, "left": left}
        for kind, ratios in self._ratios.items():
            if ratios:
                figures[f"ratio_{kind}"] = geometric_mean(ratios)
                figures[f"unreached_{kind}"] = float(np.mean(np.asarray(ratios) >= UNREACHED_RATIO))
        for name, value in figures.items():
            self.logger.record(f"rollout/{name}", value)
        for name, value in self._episodes.values().items():
            self.logger.record(name, value)
        self.logger.record("time/left_seconds", left)
        if self._report is not None:
            self._report(figures)


def save(model: PPO, out: Path, recipe: Recipe, stage: int, timesteps: int) -> None:
    """Write the checkpoint, and then where in the recipe it is."""
    with replacing(out / CHECKPOINT) as temporary:
        model.save(temporary)
    state = {"recipe": recipe.digest(), "name": recipe.name, "stage": stage, "timesteps": timesteps}
    write_atomically(out / PROGRESS, json.dumps(state))
