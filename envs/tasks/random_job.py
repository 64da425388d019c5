"""What random tasks of every kind share: their names, optimizers, schedules and plans."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from rlbatch.envs.tasks.field import schedules
from rlbatch.errors import ConfigurationError

_SEED = 20_240
_SCHEDULES = ("constant", "constant", "constant", "cosine", "linear", "warm-up")
_LONG_SCHEDULES = ("constant", "cosine", "cosine", "linear", "stable-decay", "steps")

LONG = "random-long"
"""Prefix of jobs of ordinary length: 500 to 2,500 steps, nearly all with a schedule by the step."""


@dataclass(frozen=True)
class RandomJob:
    """What a number determines, and what was fitted to it.

    Attributes:
        prefix: Kind of random task, `random` for a perceptron or `random-transformer`.
        number: Seed of everything.
        learning_rate: At the task's batch size; None for a first guess.
        target: Validation loss; None for one out of reach.
    """

    prefix: str
    number: int
    learning_rate: float | None = None
    target: float | None = None

    @property
    def name(self) -> str:
        """How `rlbatch.envs.resolve_task` finds it again."""
        if self.learning_rate is None or self.target is None:
            return f"{self.prefix}:{self.number}"
        return f"{self.prefix}:{self.number}:{self.learning_rate:.4g}:{self.target:.4g}"

    def drawn(self) -> np.random.Generator:
        """Return the generator that everything about it is drawn from."""
        return np.random.default_rng([_SEED + (self.prefix == LONG), self.number])

    def planned_steps(self) -> int:
        """Return about how many steps at its batch size the job is meant to take."""
        rng = np.random.default_rng([_SEED, self.number, 1])
        low, high = (9.0, 11.3) if self.prefix == LONG else (5.5, 9.2)
        return int(2 ** rng.uniform(low, high))

    def fitted(self, learning_rate: float, target: float) -> RandomJob:
        """Return the job with the learning rate and target that were found for it."""
        found = replace(self, learning_rate=learning_rate, target=target)
        return parse(found.name, self.prefix)  # as it will be read: to four digits


def parse(name: str, prefix: str) -> RandomJob:
    """Return what `RandomJob.name` says.

    Raises:
        ConfigurationError: It is of another form or kind.
    """
    parts = name.split(":")
    try:
        if parts[0] == prefix and len(parts) == 2:
            return RandomJob(prefix, int(parts[1]))
        if parts[0] == prefix and len(parts) == 4:
            return RandomJob(prefix, int(parts[1]), float(parts[2]), float(parts[3]))
    except ValueError:
        pass
    raise ConfigurationError(
        f"A random task is named {prefix}:NUMBER or {prefix}:NUMBER:LEARNING_RATE:TARGET, "
        f"got {name!r}."
    )


def optimizer(kind: str, learning_rate: float) -> Callable[..., Optimizer]:
    """Return what makes the optimizer `adamw`, `momentum` or `sgd`."""
    if kind == "adamw":
        return partial(AdamW, lr=learning_rate)
    return partial(SGD, lr=learning_rate, momentum=0.9 if kind == "momentum" else 0.0)


def draw_scheduler(rng: np.random.Generator) -> Callable[[Optimizer, int], LRScheduler] | None:
    """Return what makes the schedule; None for a constant learning rate."""
    kind = str(rng.choice(_SCHEDULES))
    return None if kind == "constant" else partial(_scheduler, kind)


def _scheduler(kind: str, optimizer: Optimizer, steps: int) -> LRScheduler:
    def factor(step: int) -> float:
        progress = min(step / max(steps, 1), 1.0)
        if kind == "cosine":
            return 0.02 + 0.49 * (1.0 + math.cos(math.pi * progress))
        if kind == "linear":
            return max(1.0 - progress, 0.02)
        return min(0.05 + progress / 0.1, 1.0)

    return LambdaLR(optimizer, factor)


def draw_long_scheduler(
    rng: np.random.Generator,
) -> Callable[[Optimizer, int], LRScheduler] | None:
    """Return what makes the schedule of a job of ordinary length; None for a constant rate."""
    kind = str(rng.choice(_LONG_SCHEDULES))
    warm_up = float(rng.choice([0.0, 0.02, 0.05, 0.1]))
    floor = float(rng.choice([0.0, 0.0, 0.1]))
    if kind == "constant":
        return None
    if kind == "cosine":
        return schedules.cosine(warm_up, floor)
    if kind == "linear":
        return schedules.linear(warm_up, floor)
    if kind == "stable-decay":
        return schedules.warmup_stable_decay(warm_up, float(rng.uniform(0.1, 0.4)))
    factor = float(rng.choice([0.1, 0.3]))
    first = float(rng.uniform(0.4, 0.7))
    return schedules.step(first, (1 + first) / 2, factor=factor)
