"""A pool of simulated tasks with their targets and reference costs, computed once.

Recomputing a reference at every reset would make the simulator slow; episodes draw from this pool
instead.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.distribution import Distribution
from rlbatch.envs.simulator.runs import ChunkOutcome, QuadraticRuns
from rlbatch.envs.simulator.tasks import SimulatedTasks, draw_tasks
from rlbatch.errors import ConfigurationError
from rlbatch.observation import step_cost_at

_SIZES = 2.0 ** np.arange(17)


@dataclass(frozen=True)
class TaskPool:
    """Tasks whose target the default batch size reaches.

    Attributes:
        tasks: The tasks.
        target_loss: Validation loss that ends a run, one entry a task.
        fixed_cost: Cost of each fixed batch size (1, 2, 4 ... 65,536), on the mean path of its
            runs; inf where it does not reach the target, or not at less than the cap times the
            best; shape (tasks, 17).
    """

    tasks: SimulatedTasks
    target_loss: Array
    fixed_cost: Array

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def reference_cost(self) -> Array:
        """Cost of the best fixed batch size in hindsight."""
        return self.fixed_cost.min(axis=1)

    def cost_of(self, batch_size: Array) -> Array:
        """Cost of staying at these batch sizes (powers of two), one entry a task."""
        column = np.round(np.log2(batch_size)).astype(np.int64)
        return self.fixed_cost[np.arange(len(self)), column]

    def save(self, path: Path) -> None:
        """Write the pool to an .npz file."""
        arrays = {f"task_{f.name}": getattr(self.tasks, f.name) for f in fields(self.tasks)}
        np.savez_compressed(
            path, target_loss=self.target_loss, fixed_cost=self.fixed_cost, **arrays
        )

    @classmethod
    def load(cls, path: Path) -> TaskPool:
        """Read a pool that `save` wrote.

        Raises:
            ConfigurationError: An earlier version wrote it, whose tasks had less to them.
        """
        with np.load(path, allow_pickle=False) as data:
            missing = {f"task_{f.name}" for f in fields(SimulatedTasks)} - set(data.files)
            if missing:
                raise ConfigurationError(
                    f"{path} lacks {', '.join(sorted(missing))}: an earlier version of rlbatch "
                    "made this pool of simulated tasks. Delete it, and it is drawn anew."
                )
            tasks = SimulatedTasks(
                **{f.name: data[f"task_{f.name}"] for f in fields(SimulatedTasks)}
            )
            return cls(tasks, data["target_loss"], data["fixed_cost"])


def make_pool(count: int, seed: int, distribution: Distribution | None = None) -> TaskPool:
    """Draw tasks whose target the default size reaches, with the cost of every fixed size."""
    rng = np.random.default_rng(seed)
    parts: list[TaskPool] = []
    found = 0
    while found < count:
        part = _draw_part(min(4096, 2 * count), rng, distribution)
        parts.append(part)
        found += len(part)
    return _concatenate(parts, count)


def run_cost(runs: QuadraticRuns, batch_size: Array, target: Array, cost_limit: Array) -> Array:
    """Cost at which runs of constant batch size first reach the target; inf where they never do.

    Within a chunk the validation loss is taken as geometric, so that the cost has no steps of a
    chunk's size.
    """
    cost = np.full(len(target), np.inf)
    active = np.ones(len(target), dtype=bool)
    while active.any():
        outcome = runs.advance(batch_size)
        hit = active & (outcome.validation_after <= target) & ~runs.diverged
        cost[hit] = (runs.cost - outcome.cost * (1.0 - crossing(outcome, target)))[hit]
        active &= ~hit & ~runs.diverged & (runs.cost < cost_limit) & (runs.steps < 2e6)
        if active.sum() < 0.5 * len(active):
            keep = np.flatnonzero(active)
            sub = _subset(runs, keep)
            cost[keep] = run_cost(sub, batch_size[keep], target[keep], cost_limit[keep])
            return cost
    return cost


def crossing(outcome: ChunkOutcome, target: Array) -> Array:
    """Fraction of the chunk at which the loss, taken as geometric, crosses the target."""
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.log(outcome.validation_before / target) / np.log(
            outcome.validation_before / outcome.validation_after
        )
    return np.clip(np.nan_to_num(fraction, nan=1.0), 0.0, 1.0)


def _subset(runs: QuadraticRuns, index: Array) -> QuadraticRuns:
    other = QuadraticRuns(runs.tasks.take(index), runs.rng, exact=runs.exact)
    for name, value in vars(runs).items():
        if isinstance(value, np.ndarray) and name != "target_loss":
            setattr(other, name, value[index].copy())
    return other


def _draw_part(count: int, rng: np.random.Generator, distribution: Distribution | None) -> TaskPool:
    tasks = draw_tasks(count, rng, distribution)
    target, usable = _targets(tasks, rng)
    tasks, target = tasks.take(usable), target[usable]
    cost = np.full((len(tasks), len(_SIZES)), np.inf)
    # From the base batch size outwards, so that what is known to be dearer than the cap stops
    # early.
    shifts = sorted(range(-16, 17), key=abs)
    for shift in shifts:
        size = tasks.base_batch_size * 2.0**shift
        legal = np.flatnonzero((size >= tasks.min_batch_size) & (size <= tasks.max_batch_size))
        if not len(legal):
            continue
        best = cost[legal].min(axis=1)
        limit = np.where(np.isfinite(best), UNREACHED_RATIO * best, 4e6)
        runs = QuadraticRuns(tasks.take(legal), rng, exact=True)
        cost[legal, np.log2(size[legal]).astype(np.int64)] = run_cost(
            runs, size[legal], target[legal], limit
        )
    kept = np.isfinite(cost.min(axis=1)) & _has_slack(tasks, cost, rng, distribution)
    pool = TaskPool(tasks.take(kept), target[kept], cost[kept])
    _limit_start(pool)
    return pool


def _has_slack(
    tasks: SimulatedTasks, cost: Array, rng: np.random.Generator, distribution: Distribution | None
) -> NDArray[np.bool_]:
    """Return which tasks to keep, as users' learning rates leave room for smaller batches.

    Without this, most drawn targets lie just above the noise floor of the base batch size, Adam's
    above all; the measured curves of real tasks (`scripts/compare_simulator.py`) do not.
    """
    d = distribution or Distribution()
    adam = tasks.adaptive > 0
    wanted = np.where(adam, tasks.base_batch_size / 4.0, tasks.base_batch_size / 2.0)
    column = np.log2(np.maximum(wanted, 1.0)).astype(np.int64)
    reached = np.isfinite(cost[np.arange(len(tasks)), column]) | (wanted < tasks.min_batch_size)
    asked = np.where(adam, d.probability_slack_adam, d.probability_slack_sgd)
    return reached | (rng.random(len(tasks)) >= asked)


def _limit_start(pool: TaskPool) -> None:
    """Halve starts whose first chunk would cost so much that no decision could mend it."""
    tasks = pool.tasks
    for _ in range(16):
        # The first chunk is a single step.
        first = 2.0 ** step_cost_at(tasks.step_cost_curve, np.log2(tasks.start_batch_size))
        dear = (first > 0.25 * pool.reference_cost) & (
            tasks.start_batch_size > tasks.min_batch_size
        )
        if not dear.any():
            return
        tasks.start_batch_size[dear] /= 2.0


def _targets(tasks: SimulatedTasks, rng: np.random.Generator) -> tuple[Array, Array]:
    """Loss of the default run at a drawn point of its plan; and which tasks make sense."""
    runs = QuadraticRuns(tasks, rng, exact=True)
    stop = tasks.target_fraction * tasks.horizon
    target = runs.validation_loss()
    start = target.copy()
    diverged = np.zeros(len(tasks), dtype=bool)
    while (runs.steps < stop).any():
        outcome = runs.advance(tasks.base_batch_size)
        diverged |= runs.diverged & (runs.steps < stop)
        before = runs.steps - outcome.signals.steps < stop
        target = np.where(before, np.minimum(target, outcome.validation_after), target)
    # A target that is barely below the start teaches nothing.
    return target * (1 + 1e-6), ~diverged & (target < 0.85 * start)


def _concatenate(parts: list[TaskPool], count: int) -> TaskPool:
    tasks = SimulatedTasks(
        **{
            f.name: np.concatenate([getattr(p.tasks, f.name) for p in parts])[:count]
            for f in fields(SimulatedTasks)
        }
    )
    target = np.concatenate([p.target_loss for p in parts])[:count]
    cost = np.concatenate([p.fixed_cost for p in parts])[:count]
    return TaskPool(tasks, target, cost)
