"""What is hidden from a policy but known in training: for a critic that judges better than it acts.

Most of what an episode's return varies by is how long the run takes at all. A critic that is told
leaves the advantages less noise (Pinto et al. 2018, "Asymmetric Actor Critic for Image-Based Robot
Learning").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.signals.record import Array

TRUTH_NAMES = ("spent", "reference_steps", "best_vs_size", "best_vs_base", "regret")
TRUTH_SIZE = len(TRUTH_NAMES)


class TruthRow(NamedTuple):
    """What `truth` is given of one run."""

    ratio: float
    reference_steps: float
    best_size: float
    size: float
    base_size: float
    fixed_ratio: float


def truth(
    ratio: Array,
    reference_steps: Array,
    best_size: Array,
    size: Array,
    base_size: Array,
    fixed_ratio: Array,
) -> NDArray[np.float32]:
    """Return the hidden features, float32 of shape (..., TRUTH_SIZE) within [-1, 1].

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
