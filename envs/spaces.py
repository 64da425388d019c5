"""The spaces of the environments. They say what their numbers mean, and a saved model keeps that.

stable-baselines3 saves a model's spaces with their attributes, so that an export knows the changes
for which the actions stand, and the observation for which the weights were made.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from rlbatch.observation import OBSERVATION_SIZE, SCHEMA_VERSION

CHANGES, SCHEMA = "rlbatch_changes", "rlbatch_schema"
"""Names of the attributes."""


def observation_space() -> gymnasium.spaces.Box[np.float32]:
    """Return the space of observations, with the version of what their numbers mean."""
    space = gymnasium.spaces.Box(-1.0, 1.0, (OBSERVATION_SIZE,), np.float32)
    vars(space)[SCHEMA] = SCHEMA_VERSION
    return space


def action_space(changes: Sequence[float]) -> gymnasium.spaces.Discrete:
    """Return the space of actions, with the changes of log2(batch size) that they stand for."""
    space = gymnasium.spaces.Discrete(len(changes))
    vars(space)[CHANGES] = list(changes)
    return space
