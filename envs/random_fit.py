"""Gives a random task what its user would have given it: a tuned learning rate and a target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.curves import CurveTable, compute_table
from rlbatch.envs.fixed_run import Curve, fixed_run_curve
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.task import Task, resolve_task
from rlbatch.envs.tasks.random_job import RandomJob
from rlbatch.signals.record import Coupling

RATE_GRID = tuple(range(-4, 5))
"""log2 of the learning rates tried, relative to the first guess."""

_LEAST_GAIN = 0.9  # a target above this share of the first loss is not worth a run
_MOST_GAIN = 1e-3  # below, nothing is left to learn, and losses are rounding errors
_TIGHT = 1.01  # by how much a target lies above the loss that the run came to
_WINDOW = 5  # validations whose mean that loss is: the lowest single one is luck


def fit(job: RandomJob) -> RandomJob | None:
    """Return a random task with its learning rate and target, or None where none makes sense.

    The learning rate is the best of a grid at the task's batch size, or up to twice less or 1.4
    times more: users tune no better. The target is the `level` of that run somewhere in the second
    half of its plan.

    Args:
        job: One that nothing was fitted to.
    """
    task, steps = resolve_task(job.name), job.planned_steps()
    rng = np.random.default_rng([job.number, 2])
    curves = {shift: _curve(task, steps, 2.0**shift) for shift in RATE_GRID}
    best = min(curves, key=lambda shift: _final(curves[shift]))
    scale = 2.0 ** (best + rng.uniform(-1.0, 0.5))
    curve = _curve(task, steps, scale)
    index = int(np.searchsorted(curve.steps, rng.uniform(0.4, 1.0) * steps, side="right")) - 1
    target = _TIGHT * level(np.array(curve.val_loss[: index + 1]))
    if not _MOST_GAIN * curve.val_loss[0] < target < _LEAST_GAIN * curve.val_loss[0]:
        return None
    return job.fitted(_learning_rate(task) * scale, target)


def level(losses: NDArray[np.float64]) -> float:
    """Return the lowest mean of five validations in a row, of which none is NaN or infinite.

    A target at the lowest single validation would lie where another order of the samples, and so
    another batch size, never comes.

    Returns:
        That mean, of all validations where they are fewer; infinite where there is none.
    """
    width = min(_WINDOW, len(losses))
    if width == 0:
        return float("inf")
    means = np.lib.stride_tricks.sliding_window_view(losses, width).mean(axis=-1)
    return float(np.min(means, where=np.isfinite(means), initial=np.inf))


def fitted_table(job: RandomJob, seeds: int = 1) -> CurveTable | None:
    """Return the learning curves of a random task at its own learning rate, or None as `fit`."""
    fitted = fit(job)
    if fitted is None:
        return None
    steps = job.planned_steps()
    return compute_table(
        fitted.name,
        range(seeds),
        target_factor=1.0,
        rates=(0,),
        couplings=job.couplings(),
        planned_steps=steps if resolve_task(fitted.name).scheduler is not None else None,
        longest=3 * steps,
    )


def _curve(task: Task, steps: int, scale: float) -> Curve:
    return fixed_run_curve(
        task,
        task.batch_size,
        seed=0,
        coupling=Coupling.NONE,
        max_steps=steps,
        learning_rate_scale=scale,
        planned_steps=steps if task.scheduler is not None else None,
        backend=fastest_backend,
    )


def _final(curve: Curve) -> float:
    """Mean of the last validations: a single one is noise."""
    tail = curve.val_loss[-max(3, len(curve.val_loss) // 8) :]
    return float("inf") if curve.diverged or not np.isfinite(tail).all() else float(np.mean(tail))


def _learning_rate(task: Task) -> float:
    optimizer = task.optimizer(task.model().parameters())
    return float(optimizer.param_groups[0]["lr"])
