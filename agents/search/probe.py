"""A short run that measures the gradient noise: what an advice about batch sizes rests on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.task import Task
from rlbatch.signals.record import Coupling, Signals

STEPS = 100
"""Optimizer steps of a probe, by default."""

MAX_SECONDS = 40.0
"""A probe ends after this time, whatever it has seen."""


@dataclass(frozen=True)
class ProbePoint:
    """The noise in a stretch of the probe.

    Attributes:
        samples: Seen at its end.
        grad_sqr: Mean estimate of |G|^2, preconditioned for Adam-type optimizers.
        noise_trace: Mean estimate of tr(Sigma), likewise.
        measurements: Steps that entered.
        val_loss: At its end.
    """

    samples: int
    grad_sqr: float
    noise_trace: float
    measurements: float
    val_loss: float


@dataclass(frozen=True)
class Probe:
    """What a probe saw.

    Attributes:
        batch_size: At which it ran, the task's.
        points: Stretches, oldest first.
        steps: Optimizer steps.
        seconds: That it took.
        arrived: It reached the task's target.
    """

    batch_size: int
    points: tuple[ProbePoint, ...]
    steps: int
    seconds: float
    arrived: bool


def probe(
    task: Task,
    *,
    seed: int = 0,
    coupling: str = "sqrt",
    steps: int = STEPS,
    max_seconds: float = MAX_SECONDS,
    planned_steps: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Probe:
    """Train at the task's size for a little while, the noise of every step measured.

    Args:
        task: What is trained.
        seed: Of the run.
        coupling: Name of the LR coupling; at the task's own size it changes nothing.
        steps: Optimizer steps.
        max_seconds: End earlier after this time.
        planned_steps: Length of the task's schedule, if it has one.
        clock: Returns seconds.
    """
    run = LiveRun(
        task,
        seed=seed,
        coupling=Coupling(coupling),
        profile=None,
        objective=Objective(task.target, None, CostWeights(seconds=0.0, samples=1.0)),
        cadence=Cadence(minimum=4, growth=0.15, validation_growth=0.15),
        noise_rate=float("inf"),
        planned_steps=planned_steps,
        max_steps=steps,
        guard=False,
        backend=fastest_backend,
    )
    began = clock()
    points: list[ProbePoint] = []
    while not run.finished and clock() - began < max_seconds:
        points.append(_point(run.advance(task.batch_size), run.val_loss))
    if not run.validations or run.validations[-1].steps < run.steps:
        loss = run.validate()
        points[-1] = ProbePoint(**{**vars(points[-1]), "val_loss": loss})
    return Probe(task.batch_size, tuple(points), run.steps, clock() - began, run.reached)


def _point(signals: Signals, val_loss: float) -> ProbePoint:
    return ProbePoint(
        samples=int(np.asarray(signals.total_samples)),
        grad_sqr=float(np.asarray(signals.grad_sqr)),
        noise_trace=float(np.asarray(signals.noise_trace)),
        measurements=float(np.asarray(signals.steps)),
        val_loss=val_loss,
    )
