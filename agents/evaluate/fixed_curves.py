"""Learning curves of fixed batch sizes for one task, seed and coupling, run on demand and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.curve_store import CurveKey, CurveStore
from rlbatch.agents.evaluate.run import largest_batch_size
from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.fixed_run import Curve, fixed_run_curve
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.task import Task, smallest_batch_size
from rlbatch.signals.record import Array, Coupling

MAX_STEPS = 20_000
"""Optimizer steps after which a run counts as unreached while no size has reached the target."""

WITHOUT_SCHEDULE = " without schedule"
"""Ends the name of a task whose runs say how long its schedule is to be."""

SCHEDULE_MARGIN = 1.5
"""A schedule is planned for this multiple of the steps of the default run without it."""


# In the order in which stored curves name them.
_CADENCE = ("minimum", "growth", "maximum", "validation_growth", "first")


@dataclass(frozen=True)
class FixedSetting:
    """What fixed sizes are run for.

    Attributes:
        task: What is trained.
        task_id: Tells curves of different tasks apart in a store.
        seed: Of the runs.
        coupling: How the learning rate follows the batch size.
        cadence: Spacing of the validations, that of the runs to compare.
        max_steps: Limit of a run while nothing else limits it.
        backend: Makes the weights of runs on a computed clock: as those of the runs to compare.
        planned: Length of the schedule in steps at the task's batch size, as its user gave it; None
            works one out.
    """

    task: Task
    task_id: str
    seed: int
    coupling: Coupling
    cadence: Cadence = field(default_factory=Cadence)
    max_steps: int = MAX_STEPS
    backend: BackendMaker = TorchBackend
    planned: int | None = None

    @property
    def dataset_size(self) -> int:
        """Samples of an epoch."""
        return len(self.task.train_set)  # pyright: ignore[reportArgumentType]


def size_grid(task: Task) -> list[int]:
    """Return the fixed sizes to try: the task's own times powers of two, from it outwards.

    A single sample is a size only where policies may use it, too: batch normalisation refuses it.
    """
    largest, smallest = largest_batch_size(task), min(2, smallest_batch_size(task))
    sizes = [task.batch_size * 2**k for k in range(32)]
    sizes += [task.batch_size // 2**k for k in range(1, 32) if task.batch_size % 2**k == 0]
    grid = [size for size in sizes if smallest <= size <= largest]
    return sorted(grid, key=lambda size: (abs(math.log2(size / task.batch_size)), size))


class FixedCurves:
    """Runs fixed sizes of a setting towards a target, each at most once for a limit."""

    def __init__(
        self,
        setting: FixedSetting,
        store: CurveStore,
        target: float | None,
        planned: int | None,
        on_curve: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            setting: Task, seed and coupling.
            store: Where curves are kept.
            target: Validation loss at which a run ends; None for none.
            planned: Length of the task's schedule, if it has one.
            on_curve: Called with each batch size that is about to be run.
        """
        self.setting, self.store, self.on_curve = setting, store, on_curve
        self._target, self._planned = target, planned

    def cost(self, clock: CostClock, size: int, steps: int | Array) -> Array:
        """Return the cost of steps at a size on a computed clock."""
        setting = self.setting
        return clock.run_cost(steps, size, setting.dataset_size, setting.task.batch_size)

    def steps_for(self, clock: CostClock, size: int, limit: float) -> int:
        """Return the first scheduled validation at which a size has spent the limit."""
        if not math.isfinite(limit):
            return self.longest
        return self._validation(lambda steps: float(self.cost(clock, size, steps)) >= limit)

    @property
    def longest(self) -> int:
        """Limit of a run that nothing else limits: a scheduled validation.

        A run is validated where it is cut off. Cut off elsewhere, it might meet the target at a
        step where a longer run would not have looked.
        """
        return self._validation(lambda steps: steps >= self.setting.max_steps)

    def _validation(self, enough: Callable[[int], bool]) -> int:
        """Return the first step of a scheduled validation that is enough."""
        steps, cadence = 0, self.setting.cadence
        while steps == 0 or not enough(steps):
            steps += cadence.validation_steps(steps)
        return steps

    def curve(self, size: int, max_steps: int, max_seconds: float | None = None) -> Curve:
        """Return the curve of a size up to a limit at least.

        Args:
            size: Samples per optimizer step.
            max_steps: Limit in steps.
            max_seconds: Limit on the wall clock, infinity for none; None: no clock is needed.
        """
        key = self._key(size, wall=max_seconds is not None)
        known = self.store.get(key)
        if known is not None and _suffices(known, max_steps, max_seconds):
            return known
        if self.on_curve is not None:
            self.on_curve(size)
        curve = self._run(size, max_steps, max_seconds)
        self.store.put(key, curve)
        return curve

    def _key(self, size: int, *, wall: bool) -> CurveKey:
        setting = self.setting
        return CurveKey(
            task=setting.task_id,
            seed=setting.seed,
            coupling=setting.coupling.value,
            batch_size=size,
            cadence=json.dumps({name: getattr(setting.cadence, name) for name in _CADENCE}),
            planned_steps=self._planned,
            target=self._target,
            wall=wall,
        )

    def _run(self, size: int, max_steps: int, max_seconds: float | None) -> Curve:
        setting = self.setting
        return fixed_run_curve(
            setting.task,
            size,
            seed=setting.seed,
            coupling=setting.coupling,
            max_steps=max_steps,
            max_seconds=max_seconds,
            target_loss=self._target,
            cadence=setting.cadence,
            planned_steps=self._planned,
            backend=setting.backend if max_seconds is None else TorchBackend,
        )


def _suffices(known: Curve, max_steps: int, max_seconds: float | None) -> bool:
    if known.reached or known.diverged or (known.steps and known.steps[-1] >= max_steps):
        return True
    return max_seconds is not None and bool(known.seconds) and known.seconds[-1] >= max_seconds


def planned_steps(setting: FixedSetting, store: CurveStore) -> int | None:
    """Return the length for which a task's schedule is made; None for a task without one.

    A length that is given, by the setting or by the task's `epochs`, is taken as it is. Else it is
    `SCHEDULE_MARGIN` times the steps that the default batch size needs without a schedule to
    the target (or, if it never gets there, to its lowest loss), so that a schedule ends somewhat
    after a usual run. It is the same for every batch size and policy.
    """
    if setting.planned is not None:
        return setting.planned
    if setting.task.scheduler is None:
        return None
    if (own := setting.task.planned_steps()) is not None:
        return own
    plain = replace(
        setting,
        task=replace(setting.task, scheduler=None),
        task_id=f"{setting.task_id}{WITHOUT_SCHEDULE}",
    )
    curves = FixedCurves(plain, store, setting.task.target, None)
    curve = curves.curve(setting.task.batch_size, curves.longest)
    if not curve.steps:
        return setting.max_steps
    losses = np.array(curve.val_loss)
    best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
    return max(1, math.ceil(SCHEDULE_MARGIN * curve.steps[-1 if curve.reached else best]))
