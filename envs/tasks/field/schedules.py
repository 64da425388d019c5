"""Learning rate schedules by the step, as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Scheduler = Callable[[Optimizer, int], LRScheduler]
Shape = Callable[[float], float]


def cosine(warm_up: float = 0.0, floor: float = 0.0) -> Scheduler:
    """Return a half cosine from the peak to `floor`, after a linear warm-up.

    Args:
        warm_up: Share of the steps.
        floor: Share of the peak at the end.
    """
    return _made(warm_up, lambda x: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x)))


def linear(warm_up: float = 0.0, floor: float = 0.0) -> Scheduler:
    """Return a straight line from the peak to `floor`, after a linear warm-up."""
    return _made(warm_up, lambda x: 1 - (1 - floor) * x)


def warmup_stable_decay(warm_up: float = 0.05, decay: float = 0.2) -> Scheduler:
    """Return a warm-up, a plateau, and a straight line to 0 over the last share `decay`.

    The decay is a share of the steps after the warm-up.
    """
    return _made(warm_up, lambda x: min(1.0, (1 - x) / decay))


def step(*places: float, factor: float = 0.1) -> Scheduler:
    """Return a staircase: the rate times `factor` at each of these shares of the steps."""
    return _made(0.0, lambda x: factor ** sum(x >= place for place in places))


def _made(warm_up: float, shape: Shape) -> Scheduler:
    return partial(_schedule, warm_up, shape)


def _schedule(warm_up: float, shape: Shape, optimizer: Optimizer, steps: int) -> LRScheduler:
    first = math.ceil(warm_up * steps)

    def factor(done: int) -> float:
        if done < first:
            return (done + 1) / (first + 1)
        return shape(min((done - first) / max(steps - first, 1), 1.0))

    return LambdaLR(optimizer, factor)
