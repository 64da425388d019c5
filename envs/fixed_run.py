"""A run at one batch size from start to end: the curve from which references are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.task import Task
from rlbatch.signals.record import Coupling

_SAMPLES = CostWeights(seconds=0.0, samples=1.0)


@dataclass(frozen=True)
class Curve:
    """The validations of a run at a constant batch size.

    Attributes:
        steps: Optimizer steps at each validation.
        samples: Samples at each validation.
        val_loss: Validation losses.
        seconds: Cost of each on the wall clock; empty where that was not read: other costs follow
            from steps and samples.
        reached: The last one meets the target.
        diverged: The run ended in losses that are not finite.
    """

    steps: tuple[int, ...]
    samples: tuple[int, ...]
    val_loss: tuple[float, ...]
    seconds: tuple[float, ...] = ()
    reached: bool = False
    diverged: bool = False


def fixed_run_curve(  # noqa: PLR0913 - every argument is a condition of the run
    task: Task,
    batch_size: int,
    *,
    seed: int,
    coupling: Coupling,
    max_steps: int | None = None,
    max_samples: int | None = None,
    max_seconds: float | None = None,
    target_loss: float | None = None,
    learning_rate_scale: float = 1.0,
    cadence: Cadence | None = None,
    planned_steps: int | None = None,
    backend: BackendMaker = TorchBackend,
) -> Curve:
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
        max_seconds: Seconds on the wall clock after which to stop, instead of samples; infinity for
            no such limit; None: no clock is read.
        target_loss: Validation loss at which to stop; None goes on to the limit.
        learning_rate_scale: Multiplies the task's learning rate.
        cadence: Spacing of the validations.
        planned_steps: Length of the task's schedule, if it has one.
        backend: Makes the weights, as for `LiveRun`.

    Raises:
        ConfigurationError: Nothing would ever end the run.
    """
    timed = max_seconds is not None
    budget = max_seconds if timed else max_samples
    if budget is None and target_loss is None and max_steps is not None:
        budget = math.inf  # the steps end it
    if budget is not None:
        budget = min(float(budget), math.nextafter(math.inf, 0))
    conditions = RunConditions(
        seed=seed,
        coupling=coupling,
        profile=None,
        objective=Objective(target_loss, budget, CostWeights() if timed else _SAMPLES),
        start_batch_size=batch_size,
        learning_rate_scale=learning_rate_scale,
        cadence=cadence or Cadence(),
        planned_steps=planned_steps,
        max_steps=max_steps,
    )
    run = LiveRun(task, conditions.unwatched(), backend=backend)
    while not run.finished:
        run.advance(batch_size)
    return _curve_of(run, timed=timed)


def _curve_of(run: LiveRun, *, timed: bool) -> Curve:
    rows = run.validations
    return Curve(
        steps=tuple(row.steps for row in rows),
        samples=tuple(row.samples for row in rows),
        val_loss=tuple(row.loss for row in rows),
        seconds=tuple(row.cost for row in rows) if timed else (),
        reached=run.reached,
        diverged=run.diverged,
    )
