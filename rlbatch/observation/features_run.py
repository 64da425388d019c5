"""Features of where a run is: its size, its learning rate, its aim and its plan."""

from __future__ import annotations

import numpy as np

from rlbatch.observation.feature import SHARE, SIGNED, Feature, Moment
from rlbatch.signals.elementwise import isfinite, isnan, maximum, minimum, number, where
from rlbatch.signals.record import Array

# Decisions cannot depend on more: real training runs had a few thousand samples at most, simulated
# ones up to 262,144, and a network that sees the difference treats large data sets as simulated.
_LARGEST_DATASET = 2000.0


def _dataset_size(m: Moment) -> Array:
    return minimum(number(m.context.dataset_size), _LARGEST_DATASET)


def _spent(m: Moment) -> Array:
    budget = number(m.context.budget)
    aimless = isnan(m.target)
    return where(
        isfinite(budget),
        number(m.signals.total_cost) / budget,
        # Not beside a target, whose run goes on after its plan; the group `plan` tells of both.
        where(aimless & isfinite(m.planned), number(m.signals.total_samples) / m.planned, 0.0),
    )


def _plan_left(m: Moment) -> Array:
    steps_left = (m.planned - number(m.signals.total_samples)) / m.signals.batch_size
    left = np.log2(maximum(steps_left, 1.0) / maximum(m.signals.total_steps, 1)) / 8
    return where(isfinite(m.planned), where(steps_left > 0, left, -1.0), 0.0)


PLACE = (
    Feature(
        *("size_vs_base", "place", "8 doublings", SIGNED),
        "Batch size over the user's.",
        lambda m: (m.size - np.log2(m.context.base_batch_size)) / 8,
    ),
    Feature(
        *("size", "place", "8 doublings", SIGNED),
        "Batch size over 256 samples.",
        lambda m: m.size / 8 - 1,
    ),
    Feature(
        *("room_up", "place", "8 doublings", SHARE),
        "Largest batch size allowed over this one.",
        lambda m: (np.log2(m.context.max_batch_size) - m.size) / 8,
    ),
    Feature(
        *("room_down", "place", "8 doublings", SHARE),
        "This batch size over the smallest allowed.",
        lambda m: (m.size - np.log2(m.context.min_batch_size)) / 8,
    ),
    Feature(
        *("epoch_steps", "place", "12 doublings", SIGNED),
        "Steps that an epoch, of 2,000 samples at most, takes at this batch size.",
        lambda m: (np.log2(_dataset_size(m)) - m.size) / 12,
    ),
    Feature(
        *("epochs_done", "place", "5 e-folds", SHARE),
        "One more than the epochs, of 2,000 samples at most, that are done.",
        lambda m: np.log1p(number(m.signals.total_samples) / _dataset_size(m)) / 5,
    ),
    Feature(
        *("steps_done", "place", "8 doublings", SIGNED),
        "One more than the optimizer steps done, over 256.",
        lambda m: np.log2(1 + number(m.signals.total_steps)) / 8 - 1,
    ),
)

LEARNING_RATE = (
    Feature(
        *("coupling", "learning_rate", "exponent", SHARE),
        "Exponent by which the learning rate follows the batch size.",
        lambda m: number(m.context.coupling_exponent),
    ),
    Feature(
        *("adascale", "learning_rate", "flag", SHARE),
        "Whether the coupling is AdaScale's.",
        lambda m: number(m.context.adascale),
    ),
    Feature(
        *("rate_factor", "learning_rate", "6 doublings", SIGNED),
        "Factor of the coupling on the learning rate.",
        lambda m: np.log2(number(m.signals.learning_rate_factor)) / 6,
    ),
    Feature(
        *("schedule_factor", "learning_rate", "6 doublings", SIGNED),
        "Scheduled learning rate over its peak.",
        lambda m: np.log2(maximum(m.signals.schedule_factor, 2.0**-6)) / 6,
    ),
    Feature(
        *("adaptive", "learning_rate", "flag", SHARE),
        "Whether the optimizer is of Adam's kind.",
        lambda m: number(m.context.adaptive),
    ),
    Feature(
        *("momentum", "learning_rate", "1", SHARE),
        "Decay of the first moment.",
        lambda m: number(m.context.momentum),
    ),
)

OBJECTIVE = (
    Feature(
        *("budget_run", "objective", "flag", SHARE),
        "Whether the run has no target loss.",
        lambda m: isnan(m.target).astype(np.float64),
    ),
    Feature(
        *("spent", "objective", "1", SHARE),
        "Share of the budget spent or, in a run without target and budget, of the planned samples.",
        _spent,
    ),
    Feature(
        *("weight_seconds", "objective", "1", SHARE),
        "Weight of seconds in the cost.",
        lambda m: number(m.context.weight_seconds),
    ),
    Feature(
        *("weight_samples", "objective", "1", SHARE),
        "Weight of samples in the cost.",
        lambda m: number(m.context.weight_samples),
    ),
    Feature(
        *("weight_joules", "objective", "1", SHARE),
        "Weight of joules in the cost.",
        lambda m: number(m.context.weight_joules),
    ),
)

PLAN = (
    Feature(
        *("plan_known", "plan", "flag", SHARE),
        "Whether the planned number of samples is known.",
        lambda m: isfinite(m.planned).astype(np.float64),
    ),
    Feature(
        *("plan_done", "plan", "1", SHARE),
        "Share of the planned samples that is done.",
        lambda m: where(
            isfinite(m.planned),
            minimum(number(m.signals.total_samples) / m.planned, 1.0),
            0.0,
        ),
    ),
    Feature(
        *("plan_left", "plan", "8 doublings", SIGNED),
        "Steps of this size that the plan still holds, over those done.",
        _plan_left,
    ),
)
