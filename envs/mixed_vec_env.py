"""Several vector environments as one: a rollout may hold simulated and real runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        self._firsts = np.cumsum([0, *(p.num_envs for p in parts[:-1])]).tolist()
        super().__init__(
            sum(p.num_envs for p in parts), first.observation_space, first.action_space
        )

    def reset(self) -> np.ndarray:
        """Reset every part."""
        observations = [np.asarray(part.reset()) for part in self.parts]
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        self._reset_seeds()
        self._reset_options()
        return np.concatenate(observations)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed every environment for its next reset: `seed`, `seed` + 1 and so on.

        A part whose environments were seeded when they were made, like the simulator, stays as it
        is.
        """
        seeds = super().seed(seed)
        for part, first in zip(self.parts, self._firsts, strict=True):
            part.seed(seeds[first])
        return seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set options for the next reset: the same for every environment, or one entry each."""
        super().set_options(options)
        for part, first in zip(self.parts, self._firsts, strict=True):
            part.set_options(self._options[first : first + part.num_envs])

    def step_async(self, actions: np.ndarray) -> None:
        """Hand every part its actions; those that run in other processes begin at once."""
        for part, share in zip(self.parts, np.split(actions, self._firsts[1:]), strict=True):
            part.step_async(share)

    def step_wait(self) -> VecEnvStepReturn:
        """Collect the results of every part."""
        results = [part.step_wait() for part in self.parts]
        observations, rewards, dones = (
            np.concatenate([np.asarray(r[i]) for r in results]) for i in range(3)
        )
        # A part that restarts an environment notes what its reset said.
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        return observations, rewards, dones, [info for result in results for info in result[3]]

    def close(self) -> None:
        """Close every part."""
        for part in self.parts:
            part.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of each environment."""
        return self._ask(indices, lambda part, own: part.get_attr(attr_name, own))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment."""

        def set_it(part: VecEnv, own: list[int]) -> list[None]:
            part.set_attr(attr_name, value, own)
            return [None] * len(own)

        self._ask(indices, set_it)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment."""
        return self._ask(
            indices,
            lambda part, own: part.env_method(method_name, *args, indices=own, **kwargs),
        )

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether each environment is wrapped."""
        return self._ask(indices, lambda part, own: part.env_is_wrapped(wrapper_class, own))

    def _ask(self, indices: Any, ask: Callable[[VecEnv, list[int]], Sequence[Any]]) -> list[Any]:
        """Ask each part about those of its environments that are meant, and no others.

        Args:
            indices: As in `get_attr`: None for all, a number, or numbers in any order.
            ask: Takes a part and positions in it; returns one answer a position.
        """
        chosen = np.arange(self.num_envs)[list(self._get_indices(indices))]
        answers: list[Any] = [None] * len(chosen)
        for part, first in zip(self.parts, self._firsts, strict=True):
            places = np.flatnonzero((chosen >= first) & (chosen < first + part.num_envs)).tolist()
            if places:
                own = [int(chosen[place]) - first for place in places]
                for place, answer in zip(places, ask(part, own), strict=True):
                    answers[place] = answer
        return answers
