"""A run at one batch size from start to end: the curve from which references are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.task import Task
from rlbatch.signals.record import Coupling


@dataclass(frozen=True)
class FixedRunCurve:
    """The validations of a run at a constant batch size. Costs follow from steps and samples.

    Attributes:
        batch_size: Samples per optimizer step.
        steps: Optimizer steps at each validation, int64 of shape (validations,).
        samples: Samples at each validation, int64.
        val_loss: Validation losses, float64.
        reached: The last one is at or below the target.
        diverged: The run ended in losses that are not finite.
    """

    batch_size: int
    steps: NDArray[np.int64]
    samples: NDArray[np.int64]
    val_loss: NDArray[np.float64]
    reached: bool
    diverged: bool


def fixed_run_curve(  # noqa: PLR0913 - every argument is a condition of the run
    task: Task,
    batch_size: int,
    *,
    seed: int,
    coupling: Coupling,
    max_steps: int | None = None,
    max_samples: int | None = None,
    target_loss: float | None = None,
    learning_rate_scale: float = 1.0,
    cadence: Cadence | None = None,
    planned_steps: int | None = None,
    backend: BackendMaker = TorchBackend,
) -> FixedRunCurve:
    """Return the learning curve of a constant batch size, by the code of every other run.

    Nothing is measured beside the losses (AdaScale's learning rate excepted, which needs it), and
    no chunk is rolled back: a run that diverges ends.

    Args:
        task: What is trained.
        batch_size: Samples per optimizer step.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        max_steps: Steps after which to stop; None for no such limit.
        max_samples: Samples after which to stop; None for no such limit.
        target_loss: Validation loss at which to stop; None goes on to the limit.
        learning_rate_scale: Multiplies the task's learning rate.
        cadence: Spacing of the validations.
        planned_steps: Length of the task's schedule, if it has one.
        backend: Makes the weights, as for `LiveRun`.

    Raises:
        ConfigurationError: Nothing would ever end the run.
    """
    budget = None if max_samples is None else float(max_samples)
    if budget is None and target_loss is None and max_steps is not None:
        budget = math.nextafter(math.inf, 0)  # the steps end it
    conditions = RunConditions(
        seed=seed,
        coupling=coupling,
        profile=None,
        objective=Objective(target_loss, budget, CostWeights(seconds=0.0, samples=1.0)),
        start_batch_size=batch_size,
        learning_rate_scale=learning_rate_scale,
        cadence=cadence or Cadence(),
        noise_rate=0.0,
        planned_steps=planned_steps,
        max_steps=max_steps,
        guard=False,
    )
    run = LiveRun(task, conditions, backend=backend)
    while not run.finished:
        run.advance(batch_size)
    rows = run.validations
    return FixedRunCurve(
        batch_size=batch_size,
        steps=np.array([row.steps for row in rows], dtype=np.int64),
        samples=np.array([row.samples for row in rows], dtype=np.int64),
        val_loss=np.array([row.loss for row in rows]),
        reached=run.reached,
        diverged=run.diverged,
    )
