"""What random tasks of every kind share: their names, optimizers, schedules and plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from rlbatch.envs.tasks.field import schedules
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

_SCHEDULES = ("constant", "constant", "constant", "cosine", "linear", "warm-up")
_LONG_SCHEDULES = ("constant", "cosine", "cosine", "linear", "stable-decay", "steps")

RANDOM, LONG, TRANSFORMER = "random", "random-long", "random-transformer"
"""The kinds of jobs, which their names begin with."""

_NONE, _SQRT, _LINEAR = ((one,) for one in (Coupling.NONE, Coupling.SQRT, Coupling.LINEAR))


@dataclass(frozen=True)
class JobKind:
    """What the jobs of a kind are drawn from.

    Attributes:
        seed: Of all draws, with the job's number.
        log2_samples: Range of the training set's size.
        log2_steps: Range of how many steps a run is meant to take.
        loosest_target: Up to how far over the job's own loss a target lies.
        couplings: Job n has curves with the couplings at place n, counted round.
        share: Weight of all its jobs together, among what a policy is trained on.
        long_schedules: Schedules are those of jobs of ordinary length.
    """

    seed: int
    log2_samples: tuple[float, float]
    log2_steps: tuple[float, float]
    loosest_target: float
    couplings: tuple[tuple[Coupling, ...], ...]
    share: float
    long_schedules: bool = False


KINDS: Mapping[str, JobKind] = {
    RANDOM: JobKind(
        seed=20_240,
        log2_samples=(9.0, 13.0),
        log2_steps=(5.5, 9.2),
        loosest_target=1.5,
        couplings=(_NONE + _SQRT + _LINEAR,),
        share=0.5,
    ),
    # Jobs of ordinary length: 500 to 2,500 steps, nearly all with a schedule by the step.
    LONG: JobKind(
        seed=20_241,
        log2_samples=(12.5, 16.0),
        log2_steps=(9.0, 11.3),
        loosest_target=1.15,  # near a run's end
        couplings=(_NONE, _SQRT, _SQRT, _SQRT, _LINEAR, _SQRT),
        share=1.0,
        long_schedules=True,
    ),
    TRANSFORMER: JobKind(
        seed=20_240,
        log2_samples=(9.5, 12.5),
        log2_steps=(5.5, 9.2),
        loosest_target=1.5,
        couplings=(_NONE, _SQRT, _LINEAR),  # one each: more jobs for the same time
        share=0.03,
    ),
}


def kind_of(name: str) -> str:
    """Return the kind that a task's name begins with, which is none of `KINDS` for other tasks."""
    return name.partition(":")[0]


@dataclass(frozen=True)
class RandomJob:
    """What a number determines, and what was fitted to it.

    Attributes:
        prefix: Its kind, one of `KINDS`.
        number: Seed of everything.
        learning_rate: At the task's batch size; None for a first guess.
        target: Validation loss; None for one out of reach.
    """

    prefix: str
    number: int
    learning_rate: float | None = None
    target: float | None = None

    @property
    def kind(self) -> JobKind:
        """What it is drawn from."""
        return KINDS[self.prefix]

    @property
    def name(self) -> str:
        """How `rlbatch.envs.resolve_task` finds it again."""
        if self.learning_rate is None or self.target is None:
            return f"{self.prefix}:{self.number}"
        return f"{self.prefix}:{self.number}:{self.learning_rate:.4g}:{self.target:.4g}"

    def drawn(self) -> np.random.Generator:
        """Return the generator that everything about it is drawn from."""
        return np.random.default_rng([self.kind.seed, self.number])

    def planned_steps(self) -> int:
        """Return about how many steps at its batch size the job is meant to take."""
        rng = np.random.default_rng([KINDS[RANDOM].seed, self.number, 1])
        return int(2 ** rng.uniform(*self.kind.log2_steps))

    def couplings(self) -> tuple[Coupling, ...]:
        """Return the couplings that curves are made of."""
        return self.kind.couplings[self.number % len(self.kind.couplings)]

    def fitted(self, learning_rate: float, target: float) -> RandomJob:
        """Return the job with the learning rate and target that were found for it."""
        found = replace(self, learning_rate=learning_rate, target=target)
        return parse(found.name)  # as it will be read: to four digits


def parse(name: str) -> RandomJob:
    """Return what `RandomJob.name` says.

    Raises:
        ConfigurationError: It is of another form or kind.
    """
    kind, *parts = name.split(":")
    try:
        if kind in KINDS and len(parts) == 1:
            return RandomJob(kind, int(parts[0]))
        if kind in KINDS and len(parts) == 3:
            return RandomJob(kind, int(parts[0]), float(parts[1]), float(parts[2]))
    except ValueError:
        pass
    kinds = kind if kind in KINDS else "KIND"
    known = "" if kind in KINDS else f" (kinds: {', '.join(KINDS)})"
    raise ConfigurationError(
        f"A random task is named {kinds}:NUMBER or {kinds}:NUMBER:LEARNING_RATE:TARGET{known}, "
        f"got {name!r}."
    )


def optimizer(kind: str, learning_rate: float) -> Callable[..., Optimizer]:
    """Return what makes the optimizer `adamw`, `momentum` or `sgd`."""
    if kind == "adamw":
        return partial(AdamW, lr=learning_rate)
    return partial(SGD, lr=learning_rate, momentum=0.9 if kind == "momentum" else 0.0)


def draw_scheduler(
    kind: JobKind, rng: np.random.Generator
) -> Callable[[Optimizer, int], LRScheduler] | None:
    """Return what makes a job's schedule; None for a constant learning rate."""
    return _draw_long_schedule(rng) if kind.long_schedules else _draw_schedule(rng)


def _draw_schedule(rng: np.random.Generator) -> Callable[[Optimizer, int], LRScheduler] | None:
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


def _draw_long_schedule(
    rng: np.random.Generator,
) -> Callable[[Optimizer, int], LRScheduler] | None:
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
