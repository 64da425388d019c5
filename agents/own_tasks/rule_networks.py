"""Simple rules as policy files: networks of one layer that decide as the rule does.

A network that is linear in the observation can go to a size: with x = log2(size / base) and a goal
t, the action a that ends nearest is the argmax of -(x + a - t)^2, and what remains of that without
the terms that are equal for all actions, 2 a t - 2 a x - a^2, is linear in x and in t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network

_SHARPNESS = 4.0  # of the softmax: three quarters of a doubling off counts as impossible
_SIZE_SCALE, _GOODPUT_SCALE = 8.0, 6.0  # doublings of the observations at 1


def size_policy(log2_goal: float, actions: Sequence[float], card: PolicyCard) -> LearnedPolicy:
    """Return the policy that goes to a multiple of the task's batch size and stays there.

    Args:
        log2_goal: log2 of that multiple.
        actions: Changes of log2(batch size).
        card: Of the policy.
    """
    return _linear({"size_vs_base": -_SIZE_SCALE}, log2_goal, actions, card)


def goodput_policy(actions: Sequence[float], card: PolicyCard) -> LearnedPolicy:
    """Return the policy that goes to the size of the most goodput, as observed.

    Args:
        actions: Changes of log2(batch size).
        card: Of the policy.
    """
    return _linear({"goodput_step": _GOODPUT_SCALE}, 0.0, actions, card)


def _linear(
    goal: Mapping[str, float], constant: float, actions: Sequence[float], card: PolicyCard
) -> LearnedPolicy:
    """Return the policy whose change is the action nearest to a linear function."""
    changes = np.asarray(actions, dtype=np.float64)
    weight = np.zeros((len(changes), OBSERVATION_SIZE))
    for name, factor in goal.items():
        weight[:, OBSERVATION_NAMES.index(name)] = 2.0 * changes * factor
    bias = 2.0 * changes * constant - changes**2
    policy = Layer(
        (_SHARPNESS * weight).astype(np.float32), (_SHARPNESS * bias).astype(np.float32)
    )
    value = Layer(np.zeros((1, OBSERVATION_SIZE), np.float32), np.zeros(1, np.float32))
    return LearnedPolicy((Network((policy,), (value,)),), action_grid=tuple(actions), card=card)
