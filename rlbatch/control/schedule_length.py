"""For how many steps a learning-rate schedule was made, read from the scheduler itself."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from rlbatch.control.schedule_watch import schedulers_of
from rlbatch.data.sample_schedule import counts_samples

# What the functions of schedules call it that come as `functools.partial` (Transformers' do).
_KEYWORDS = ("num_training_steps", "total_steps", "max_steps")


def scheduled_steps(optimizer: Optimizer, epoch_steps: int) -> int | None:
    """Return for how many steps of the user's batch size an optimizer's schedule was made.

    A schedule that is stepped once an epoch counts epochs. Which of the two it counts is known of
    one that was given to the controller; of another it is taken for epochs where it is shorter than
    an epoch has steps, and for steps where it is at least two epochs long.

    Args:
        optimizer: Its schedulers are looked for.
        epoch_steps: Steps of an epoch at the user's batch size.

    Returns:
        None where no scheduler says it, or in one of the doubtful cases.
    """
    lengths = [length for s in schedulers_of(optimizer) if (length := length_of(s)) is not None]
    if not lengths:
        return None
    longest = max(lengths)
    if counts_samples(optimizer) or longest >= 2 * epoch_steps:
        return longest
    return longest * epoch_steps if longest < epoch_steps else None


def length_of(scheduler: Any) -> int | None:
    """Return the number of its own steps at which a scheduler ends; None where it has no end.

    One that repeats, that waits for milestones or decays by a factor has none, and a warm-up alone
    says nothing of what comes after it.
    """
    if isinstance(scheduler, schedulers.SequentialLR):
        last = length_of(scheduler._schedulers[-1])
        return None if last is None else int(scheduler._milestones[-1]) + last
    if isinstance(scheduler, schedulers.ChainedScheduler):
        found = [length_of(part) for part in scheduler._schedulers]
        return max((length for length in found if length is not None), default=None)
    if isinstance(scheduler, schedulers.LambdaLR):
        return _of_functions(scheduler)
    if isinstance(scheduler, schedulers.CosineAnnealingLR):
        return _whole(scheduler.T_max)
    if isinstance(scheduler, schedulers.PolynomialLR):
        return _whole(scheduler.total_iters)
    if isinstance(scheduler, schedulers.LinearLR):
        falls = scheduler.end_factor < scheduler.start_factor
        return _whole(scheduler.total_iters) if falls else None
    return _whole(getattr(scheduler, "total_steps", None))


def _of_functions(scheduler: schedulers.LambdaLR) -> int | None:
    for function in scheduler.lr_lambdas:
        keywords = getattr(function, "keywords", {})
        for name in _KEYWORDS:
            if (length := _whole(keywords.get(name))) is not None:
                return length
    return None


def _whole(value: Any) -> int | None:
    """Return a number of steps; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 1 else None
