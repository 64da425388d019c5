"""Several vector environments as one: a rollout may hold simulated and real runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rlbatch.errors import ConfigurationError


class MixedVecEnv(VecEnv):
    """The environments of several vector environments, one after the other."""

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        """Join vector environments with equal spaces."""
        if not parts:
            raise ConfigurationError("MixedVecEnv needs at least one vector environment, got none.")
        first = parts[0]
        if any(
            (p.observation_space, p.action_space) != (first.observation_space, first.action_space)
            for p in parts
        ):
            raise ConfigurationError(
                "The parts of a MixedVecEnv must have equal observation and action spaces."
            )
        self.parts = list(parts)
        super().__init__(
            sum(p.num_envs for p in parts), first.observation_space, first.action_space
        )
        self._edges = np.cumsum([p.num_envs for p in parts])[:-1]

    def reset(self) -> np.ndarray:
        """Reset every part."""
        return np.concatenate([np.asarray(part.reset()) for part in self.parts])

    def step_async(self, actions: np.ndarray) -> None:
        """Hand every part its actions; those that run in other processes begin at once."""
        for part, share in zip(self.parts, np.split(actions, self._edges), strict=True):
            part.step_async(share)

    def step_wait(self) -> VecEnvStepReturn:
        """Collect the results of every part."""
        results = [part.step_wait() for part in self.parts]
        observations, rewards, dones = (
            np.concatenate([np.asarray(r[i]) for r in results]) for i in range(3)
        )
        return observations, rewards, dones, [info for result in results for info in result[3]]

    def close(self) -> None:
        """Close every part."""
        for part in self.parts:
            part.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of each environment."""
        values = [value for part in self.parts for value in part.get_attr(attr_name)]
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute in every part (all environments)."""
        for part in self.parts:
            part.set_attr(attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment."""
        values = [v for part in self.parts for v in part.env_method(method_name, *args, **kwargs)]
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether each environment is wrapped."""
        values = [v for part in self.parts for v in part.env_is_wrapped(wrapper_class)]
        return [values[i] for i in self._get_indices(indices)]
