"""An environment that counts, in a module that other processes import quickly."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

from rlbatch.envs.processes import keep_tensorflow_out

keep_tensorflow_out()  # by Stable-Baselines3 it would be imported there, for TensorBoard
import_module("stable_baselines3.common.vec_env")  # whose workers they are


class Counter(gymnasium.Env[np.ndarray, np.int64]):
    """Counts up by its action and a random number; an episode ends beyond its number."""

    def __init__(self, number: int, actions: int = 3) -> None:
        self.observation_space = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(actions)
        self.number, self.total, self.calls, self.note = number, 0, 0, ""
        self.render_mode = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.total = (options or {}).get("total", 0)
        return self._seen(), {"begun": self.number}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.total += int(action) + int(self.np_random.integers(3))
        ended = self.total > 3 + self.number
        return self._seen(), float(self.total), ended, False, {"number": self.number}

    def called(self, amount: int, *, times: int = 1) -> int:
        self.calls += amount * times
        return self.calls

    def _seen(self) -> np.ndarray:
        return np.array([self.number, self.total], dtype=np.float32)
