"""Observations of which a training does not see all: what each group of them is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rlbatch.errors import UnknownNameError
from rlbatch.observation import GROUPS, OBSERVATION_NAMES


class MaskedGroups(VecEnvWrapper):
    """Environments whose observations are 0 in the features of some groups."""

    def __init__(self, env: VecEnv, groups: Sequence[str]) -> None:
        """Hide these groups of the environments' observations.

        Raises:
            UnknownNameError: There is no such group.
        """
        super().__init__(env)
        self._hidden = _columns(groups)

    def reset(self) -> NDArray[np.float32]:
        """Reset every environment."""
        return self._without(np.asarray(self.venv.reset()))

    def step_wait(self) -> VecEnvStepReturn:
        """Return the step's results, the last observations of ended episodes among them."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._without(info["terminal_observation"])
        return self._without(np.asarray(observations)), rewards, dones, infos

    def _without(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        shown = observations.copy()
        shown[..., self._hidden] = 0.0
        return shown


def blind(
    parameters: dict[str, NDArray[np.float32]], groups: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Return parameters of nets that do not look at some groups of their observations.

    What was always 0 in training has kept its random weights: they become 0.

    Args:
        parameters: Of a stable-baselines3 `MlpPolicy`.
        groups: What was hidden.
    """
    changed, hidden = dict(parameters), _columns(groups)
    for net in ("policy_net", "value_net"):
        name = f"mlp_extractor.{net}.0.weight"
        changed[name] = changed[name].copy()
        changed[name][:, hidden] = 0.0
    return changed


def _columns(groups: Sequence[str]) -> NDArray[np.intp]:
    for group in groups:
        if group not in GROUPS:
            raise UnknownNameError("group of observations", group, GROUPS)
    names = [name for group in groups for name in GROUPS[group]]
    return np.array([OBSERVATION_NAMES.index(name) for name in names], dtype=np.intp)
