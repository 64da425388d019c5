"""Simple rules as policy files: networks of one layer that decide as the rule does.

A network that is linear in the observation can go to a size: with x = log2(size / base) and a goal
t, the action a that ends nearest is the argmax of -(x + a - t)^2, and what remains of that without
the terms that are equal for all actions, 2 a t - 2 a x - a^2, is linear in x and in t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network

_SHARPNESS = 4.0  # of the softmax: three quarters of a doubling off counts as impossible
_SIZE_SCALE, _GOODPUT_SCALE = 8.0, 6.0  # doublings of the observations at 1
_LOSS_SCALE, _STEPS_SCALE = 3.0, 8.0  # e-folds, doublings
_STEPS_ZERO = 8.0  # log2 of the steps at which that observation is 0


@dataclass(frozen=True)
class Schedule:
    """log2 of the batch size over the task's, as a linear function of where the run is.

    Attributes:
        end: At the target, after `end_steps`.
        by_loss: Doublings for each e-fold by which the latest training losses exceed the target.
        by_steps: Doublings for each doubling of the steps done.
        end_steps: log2 of the steps that a usual run takes.
    """

    end: float
    by_loss: float = 0.0
    by_steps: float = 0.0
    end_steps: float = 8.0


def size_policy(log2_goal: float, actions: Sequence[float], card: PolicyCard) -> LearnedPolicy:
    """Return the policy that goes to a multiple of the task's batch size and stays there.

    Args:
        log2_goal: log2 of that multiple.
        actions: Changes of log2(batch size).
        card: Of the policy.
    """
    return _linear({"size_vs_base": -_SIZE_SCALE}, log2_goal, actions, card)


def schedule_policy(
    schedule: Schedule, actions: Sequence[float], card: PolicyCard
) -> LearnedPolicy:
    """Return the policy that follows a schedule.

    Args:
        schedule: The size as a function of loss and steps.
        actions: Changes of log2(batch size).
        card: Of the policy.
    """
    goal = {
        "size_vs_base": -_SIZE_SCALE,
        "recent_vs_target": schedule.by_loss * _LOSS_SCALE,
        "steps_done": schedule.by_steps * _STEPS_SCALE,
    }
    constant = schedule.end + schedule.by_steps * (_STEPS_ZERO - schedule.end_steps)
    return _linear(goal, constant, actions, card)


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
    policy = Layer((_SHARPNESS * weight).astype(np.float32), (_SHARPNESS * bias).astype(np.float32))
    value = Layer(np.zeros((1, OBSERVATION_SIZE), np.float32), np.zeros(1, np.float32))
    return LearnedPolicy((Network((policy,), (value,)),), action_grid=tuple(actions), card=card)
