"""Learning curves of fixed batch sizes, computed once: references for training on real tasks.

With a coupling of exponent c, the fixed batch size B runs at the learning rate lr0 (B / B0)^c. So
curves on a grid of batch sizes and learning rates serve every coupling but AdaScale, every default
learning rate on the grid and, since cost follows from steps, every device profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.fixed_run import Curve, fixed_run_curve
from rlbatch.envs.objectives import UNREACHED_RATIO, Cadence
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

SIZE_SHIFTS = tuple(range(-4, 6))
RATE_SHIFTS = (-2, 0, 2)
COUPLINGS = (Coupling.NONE, Coupling.SQRT, Coupling.LINEAR)

Point = tuple[int, int]  # log2(batch size / default), 2 x log2(learning rate / default)


def grid_points(
    rates: Sequence[int] = RATE_SHIFTS, couplings: Sequence[Coupling] = COUPLINGS
) -> list[Point]:
    """Points that these couplings need with these rates, from the default outwards."""
    points = {
        (size, _rate(rate, coupling, size))
        for size in SIZE_SHIFTS
        for rate in rates
        for coupling in couplings
    }
    return sorted(points, key=lambda point: (abs(point[0]), abs(point[1]), point))


@dataclass(frozen=True)
class CurveTable:
    """Validation losses of fixed runs of one task.

    Attributes:
        task: The task's name.
        points: (points, 2) integers, see `Point`.
        steps: (validations,) optimizer steps at which a validation was made; the same for every
            run.
        val_loss: (points, seeds, validations); NaN after a run ended.
        planned_steps: Length of the task's schedule in steps at its batch size; None without one.
    """

    task: str
    points: NDArray[np.int64]
    steps: NDArray[np.int64]
    val_loss: NDArray[np.float32]
    planned_steps: int | None = None

    def save(self, path: Path | IO[bytes]) -> None:
        """Write the table as .npz."""
        np.savez_compressed(
            path,
            task=np.array(self.task),
            points=self.points.astype(np.int8),
            steps=self.steps.astype(np.int32),
            val_loss=self.val_loss.astype(np.float32),
            planned_steps=np.array(self.planned_steps or 0),
        )

    @classmethod
    def load(cls, path: Path) -> CurveTable:
        """Read a table that `save` wrote.

        Raises:
            ConfigurationError: There is no such file, or it holds something else.
        """
        if not path.is_file():
            raise ConfigurationError(
                f"No learning curves at {path}. Make them with rlbatch curves."
            )
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                return cls(
                    str(data["task"]),
                    data["points"].astype(np.int64),
                    data["steps"].astype(np.int64),
                    data["val_loss"],
                    int(data["planned_steps"]) or None if "planned_steps" in data else None,
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ConfigurationError(
                f"{path} is not a file of learning curves, or only a part of one ({error}). "
                "Make it again with rlbatch curves."
            ) from error

    def row(self, size_shift: int, rate_shift: int) -> int | None:
        """Position of a grid point, None where it was not run."""
        match = np.flatnonzero(
            (self.points[:, 0] == size_shift) & (self.points[:, 1] == rate_shift)
        )
        return int(match[0]) if len(match) else None

    def rates(self) -> list[int]:
        """Learning rates, of `RATE_SHIFTS`, at which the default batch size was run."""
        return [rate for rate in RATE_SHIFTS if self.row(0, rate) is not None]

    def couplings(self, rate_shift: int) -> list[Coupling]:
        """Couplings under which every size of the table was run, at that learning rate."""
        sizes = {int(size) for size in self.points[:, 0]}
        return [
            coupling
            for coupling in COUPLINGS
            if all(self.row(size, _rate(rate_shift, coupling, size)) is not None for size in sizes)
        ]

    def steps_to(self, row: int, target: float) -> float:
        """Median over seeds of the steps to a validation loss; inf where half never reached it."""
        return float(np.median(self._steps(row, target)))

    def _steps(self, row: int, target: float) -> NDArray[np.float64]:
        """Steps to a validation loss, shape (seeds,); inf where a run never reached it."""
        hit = self.val_loss[row] <= target
        return np.where(hit.any(axis=1), self.steps[hit.argmax(axis=1)], np.inf)

    def costs(
        self,
        target: float,
        rate_shift: int,
        coupling: Coupling,
        profile: DeviceProfile,
        weights: CostWeights,
        base: int,
    ) -> dict[int, float]:
        """Cost of reaching the target at each fixed batch size that was run.

        As results are counted: the geometric mean over seeds, of which one that does not arrive
        counts `UNREACHED_RATIO` times the best size's median, and none may count more; inf where
        none arrives.
        """
        each: dict[int, NDArray[np.float64]] = {}
        for shift in SIZE_SHIFTS:
            row = self.row(shift, _rate(rate_shift, coupling, shift))
            if row is not None:
                size = base * 2.0**shift  # whole: no other was run
                each[int(size)] = self._steps(row, target) * float(
                    step_cost(profile, weights, size, base)
                )
        most = UNREACHED_RATIO * min((float(np.median(cost)) for cost in each.values()), default=0)
        return {
            size: float(np.exp(np.log(np.minimum(cost, most)).mean()))
            if np.isfinite(cost).any()
            else np.inf
            for size, cost in each.items()
        }


def compute_table(
    task_name: str,
    seeds: Sequence[int],
    step_factor: float = 3.0,
    target_factor: float = 0.95,
    *,
    rates: Sequence[int] = RATE_SHIFTS,
    couplings: Sequence[Coupling] = COUPLINGS,
    planned_steps: int | None = None,
    longest: int = 4000,
) -> CurveTable:
    """Run the grid for one task.

    A run ends at `target_factor` times the task's target or after `step_factor` times the steps
    that the default run needed. On most devices whatever needs more is not the best size; where
    steps cost in proportion to the batch size from the first sample on, a small one may need more,
    be the best all the same, and count as one that does not arrive. Sizes that are no whole number
    of samples are left out.

    Args:
        task_name: Of the task.
        seeds: Runs of each point.
        step_factor: See above.
        target_factor: See above.
        rates: Learning rates of the grid, as `RATE_SHIFTS`.
        couplings: Couplings that the grid serves.
        planned_steps: Length of the task's schedule, if it has one.
        longest: Steps after which the default run ends in any case.
    """
    task = resolve_task(task_name)
    target = task.target * target_factor

    def run(batch_size: int, rate_shift: int, seed: int, max_steps: int) -> Curve:
        return fixed_run_curve(
            task,
            batch_size,
            seed=seed,
            coupling=Coupling.NONE,
            max_steps=max_steps,
            target_loss=target,
            learning_rate_scale=2.0 ** (rate_shift / 2),
            planned_steps=planned_steps,
            backend=fastest_backend,
        )

    defaults = [run(task.batch_size, 0, seed, longest) for seed in seeds]
    limit = int(step_factor * max(curve.steps[-1] for curve in defaults))
    grid = _validation_grid(Cadence(), limit)
    sizes = _sizes(task)
    points = [point for point in grid_points(rates, couplings) if point[0] in sizes]
    losses = np.full((len(points), len(seeds), len(grid)), np.nan, dtype=np.float32)
    for i, (shift, rate) in enumerate(points):
        for j, seed in enumerate(seeds):
            curve = run(sizes[shift], rate, seed, limit)
            known = dict(zip(curve.steps, curve.val_loss, strict=True))
            losses[i, j] = [known.get(step, np.nan) for step in grid]
    return CurveTable(task_name, np.asarray(points), np.asarray(grid), losses, planned_steps)


def _sizes(task: Task) -> dict[int, int]:
    """The task's batch size times each power of two, where that is a whole number it allows."""
    largest = task.max_batch_size or len(task.train_set)  # type: ignore[arg-type]
    sizes = {shift: task.batch_size * 2.0**shift for shift in SIZE_SHIFTS}
    return {
        shift: int(size) for shift, size in sizes.items() if size.is_integer() and size <= largest
    }


def _rate(rate_shift: int, coupling: Coupling, size_shift: int) -> int:
    """2 x log2 of a size's learning rate, from the default size's."""
    return rate_shift + round(2 * coupling.exponent * size_shift)


def _validation_grid(cadence: Cadence, limit: int) -> list[int]:
    grid: list[int] = []
    step = 0
    while step < limit:
        step += cadence.validation_steps(step)
        grid.append(step)
    return grid
