"""What is hidden from a policy but known in training.

Most of what an episode's return varies by is how long the run takes at all. A critic that is told
leaves the advantages less noise (Pinto et al. 2018, "Asymmetric Actor Critic for Image-Based Robot
Learning"). And what the fixed sizes cost says of every action, not of the drawn one alone, how good
it would be: `regrets`, by which a policy may be guided (`rlbatch.agents.critic`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.signals.record import Array

PRIVILEGED_NAMES = ("spent", "reference_steps", "best_vs_size", "best_vs_base", "regret")
PRIVILEGED_SIZE = len(PRIVILEGED_NAMES)
REGRET_SCALE = 4.0
"""`regrets` are log2 of a ratio of costs, divided by this."""

CHANGE_COST = 0.03
"""What `regrets` count for each factor of two by which an action changes the size, in log2."""

LARGEST_REGRET = float(np.log2(UNREACHED_RATIO))
"""What a size counts, in log2, that does not reach the target."""


_GROWTH_AT = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_GROWTH = (0.0, 0.2, 0.8, 1.0, 1.7, 2.5)


class PrivilegedRow(NamedTuple):
    """What `truth` is given of one run."""

    ratio: float
    reference_steps: float
    best_size: float
    size: float
    base_size: float
    fixed_ratio: float


def privileged_information(
    ratio: Array,
    reference_steps: Array,
    best_size: Array,
    size: Array,
    base_size: Array,
    fixed_ratio: Array,
) -> NDArray[np.float32]:
    """Return the hidden features, float32 of shape (..., PRIVILEGED_SIZE) within [-1, 1].

    Args:
        ratio: Cost so far over the reference cost.
        reference_steps: Steps at the default batch size that the reference cost buys.
        best_size: The best fixed batch size in hindsight.
        size: Batch size in force.
        base_size: The task's batch size.
        fixed_ratio: Cost of staying at the size from the start over the reference cost; infinite
            where that never arrives.
    """
    features = [
        ratio / UNREACHED_RATIO,
        np.log2(np.maximum(reference_steps, 1.0)) / 12,
        (np.log2(best_size) - np.log2(size)) / 8,
        (np.log2(best_size) - np.log2(base_size)) / 8,
        np.log2(np.minimum(fixed_ratio, 16.0)) / 4,
    ]
    stacked = np.stack(np.broadcast_arrays(*features), axis=-1)
    return np.clip(np.nan_to_num(stacked, nan=1.0, posinf=1.0), -1.0, 1.0).astype(np.float32)


def costs_from_here(sizes: Array, costs: Array, step_costs: Array, done: float) -> Array:
    """Return what fixed sizes cost if taken from this share of a learning-rate schedule on.

    The critical batch size grows while a run with a schedule goes on: a size that uses up too many
    samples from the start does so less and less later. By `_GROWTH` doublings, measured as follows:
    how often runs arrive that double their size at a share of the schedule, and how often those
    that are twice as large from the start. So many samples of the smaller size are counted, each
    with the cost that it has at the size itself.

    Args:
        sizes: Ascending, each twice the one before, shape (sizes,).
        costs: Of reaching the target at each from the start; infinite where one does not.
        step_costs: Of one step at each.
        done: Share of the schedule that is over.
    """
    shift = float(np.interp(done, _GROWTH_AT, _GROWTH))
    samples = np.log2(costs / step_costs * sizes)
    samples = np.minimum(samples, samples.min() + 2 * LARGEST_REGRET)
    position = np.log2(sizes) - shift
    return 2.0 ** np.interp(position, np.log2(sizes), samples) * step_costs / sizes


def regrets(
    costs: Array, log2_first: Array | float, log2_size: Array | float, log2_wanted: Array
) -> NDArray[np.float32]:
    """Return how much dearer than the best fixed batch size the wanted ones are, when kept.

    That is log2 of the ratio of their costs over `REGRET_SCALE`, from 0 to what an unreached target
    counts. Between the known sizes it is interpolated; beyond them it grows by what it takes to get
    there. A change counts `CHANGE_COST` for a factor of two: where two sizes are as good, a policy
    had better stay.

    Args:
        costs: Of reaching the target at the fixed sizes 2^first, 2^(first + 1) and so on, shape
            (..., sizes); infinite where one does not, but never all of them.
        log2_first: Shape (...).
        log2_size: The size in force, shape (...).
        log2_wanted: Sizes to which the actions lead, shape (..., actions).
    """
    known = np.minimum(np.log2(costs / costs.min(axis=-1, keepdims=True)), LARGEST_REGRET)
    last = costs.shape[-1] - 1
    position = log2_wanted - np.asarray(log2_first)[..., None]
    inside = np.clip(position, 0.0, last)
    lower = np.minimum(inside.astype(np.int64), max(last - 1, 0))
    upper = np.minimum(lower + 1, last)
    left = np.take_along_axis(known, lower, axis=-1)
    right = np.take_along_axis(known, upper, axis=-1)
    value = left + (right - left) * (inside - lower) + np.abs(position - inside)
    change = np.abs(log2_wanted - np.asarray(log2_size)[..., None])
    return ((np.minimum(value, LARGEST_REGRET) + CHANGE_COST * change) / REGRET_SCALE).astype(
        np.float32
    )
