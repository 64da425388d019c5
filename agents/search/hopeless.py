"""When a run of so many epochs is given up: it lags behind the best so far by a factor of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.trials import Stop
from rlbatch.envs.live import Validation

LAG = 2.0
"""A large batch starts behind a small one and catches up, but hardly ever by more than this."""


def is_hopeless(
    validations: Sequence[Validation], goal: Goal, stop: Stop, planned_samples: float | None
) -> bool:
    """Return whether a run that has not ended yet can be given up.

    From half of its samples on, its lowest loss is held against that of the best size so far after
    half as many samples. Where it is higher, the run is taken to stay as far behind to its end: if
    its score would then be worse than the best, it is hopeless.

    Args:
        validations: Of the run so far.
        goal: What is looked for.
        stop: What the best size showed.
        planned_samples: Of a whole run; None where runs do not end by samples.
    """
    if planned_samples is None or len(stop.samples) < 2 or not validations:
        return False
    last = validations[-1]
    if last.samples < planned_samples / 2:
        return False
    lowest = min((v.loss for v in validations if math.isfinite(v.loss)), default=math.inf)
    earlier, halfway = (
        float(np.exp(np.interp(samples / LAG, stop.samples, np.log(stop.losses))))
        for samples in (last.samples, planned_samples)
    )
    behind = lowest / earlier
    if behind <= 1.0:
        return False
    cost = last.cost * planned_samples / last.samples
    return goal.score(cost, behind * halfway) > stop.best_score
