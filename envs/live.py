"""A real PyTorch run of a task, advanced chunk by chunk by decisions from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlbatch.control.coupled_rate import CoupledRate
from rlbatch.control.guard import ChunkLoss, GuardConfig, GuardState, judge
from rlbatch.control.torch_parts import TorchRate
from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.clock import Clock, make_clock
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.sample_order import SampleOrder
from rlbatch.envs.sample_schedule import SampleSchedule
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.assemble import chunk_signals, run_context
from rlbatch.signals.cadence import NOISE_RATE, is_measured
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.record import Array, Coupling, Signals


@dataclass(frozen=True)
class Validation:
    """One validation of a run: where it was, and what it showed."""

    steps: int
    samples: int
    cost: float
    loss: float


class LiveRun:
    """Trains a task's model; somebody else says at which batch size.

    Equal arguments and equal decisions give bit-equal runs (on a profile's clock). Runs of one seed
    start from the same weights and see the same samples in the same order, whatever their batch
    sizes.

    Attributes:
        backend: The weights.
        context: The run's constants, as signals carry them.
        batch_size: Samples per optimizer step in force.
        steps: Optimizer steps so far.
        samples_seen: Samples so far.
        cost: Spent so far, in the objective's unit.
        val_loss: Of the latest validation; NaN before the first.
        validations: All of them.
        reached: A validation was at or below the objective's target.
        exhausted: The budget is spent, or the planned samples or `max_steps` are done.
        diverged: The weights are lost.
        released: Undoing chunks did not help: as a controller that switches itself off, the run
            goes on at the task's batch size, whatever is asked for, and nothing is undone any more.
    """

    def __init__(  # noqa: PLR0913 - every argument is a condition of the run
        self,
        task: Task,
        *,
        seed: int,
        coupling: Coupling,
        profile: DeviceProfile | None,
        objective: Objective,
        start_batch_size: int | None = None,
        min_batch_size: int = 1,
        max_batch_size: int | None = None,
        learning_rate_scale: float = 1.0,
        cadence: Cadence | None = None,
        planned_steps: int | None = None,
        plan_known: bool = True,
        max_steps: int | None = None,
        guard: GuardConfig | bool = True,
        noise_rate: float = NOISE_RATE,
        curve_known: bool = True,
        backend: BackendMaker = TorchBackend,
    ) -> None:
        """Build the model and everything else that the seed determines.

        Args:
            task: What is trained.
            seed: Of the weights, the order of the data and the random numbers within the model.
            coupling: How the learning rate follows the batch size.
            profile: Whose step costs count; None takes the wall clock.
            objective: When the run ends, and what cost is.
            start_batch_size: First batch size in force; None takes the task's.
            min_batch_size: Smallest that may be asked for.
            max_batch_size: Largest; None takes the task's, or else the training set's size.
            learning_rate_scale: Multiplies the task's learning rate.
            cadence: Steps of a chunk and between validations.
            planned_steps: Steps at the task's batch size for which its schedule is made. Needed if
                the task has a schedule; it advances with samples.
            plan_known: Tell `planned_steps` in the signals, as a user does who says how many epochs
                a run is made for.
            max_steps: Steps after which the run counts as exhausted.
            guard: Roll damaged chunks back; True for the default limits.
            noise_rate: Of the first n steps, about this times the square root of n are measured.
                Each is divided in two, and the clock charges the additional pass. 0 for none; but
                AdaScale needs it and measures anyway.
            curve_known: Tell the profile's costs at every size, instead of what a run without a
                profile learns from its steps.
            backend: Makes the weights, from the task, the seed and the scale of the learning rate.

        Raises:
            ConfigurationError: Bounds exclude each other, or the schedule's length is missing.
        """
        self.task, self.objective = task, objective
        self.cadence = Cadence() if cadence is None else cadence
        size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
        largest = max_batch_size or task.max_batch_size or size
        self.batch_size = task.batch_size if start_batch_size is None else start_batch_size
        _require_bounds(min_batch_size, self.batch_size, largest, size)
        self.backend = backend(task, seed, learning_rate_scale)
        self.optimizer = self.backend.optimizer
        self._schedule = SampleSchedule(task, self.optimizer, planned_steps)
        self._order = SampleOrder(size, seed)
        self._clock: Clock = make_clock(
            profile, objective.weights, task.batch_size, curve_known=curve_known
        )
        self._rate = TorchRate(self.optimizer)
        self._coupling = CoupledRate(self._rate, coupling, task.batch_size)
        self._noise_rate = noise_rate or NOISE_RATE * (coupling is Coupling.ADASCALE)
        self._guard = (GuardConfig() if guard is True else guard) or None
        self._guard_state = GuardState()
        self._max_steps = max_steps
        self._next_validation = self.cadence.validation_steps(0)
        weights = objective.weights
        plan = planned_steps * task.batch_size if planned_steps and plan_known else None
        self.context = run_context(
            self._rate,
            coupling,
            base_batch_size=task.batch_size,
            min_batch_size=min_batch_size,
            max_batch_size=largest,
            dataset_size=size,
            target_loss=objective.target_loss,
            budget=objective.budget,
            weights=(weights.seconds, weights.samples, weights.joules),
            planned_samples=objective.planned_samples or plan,
        )
        self.steps = self.samples_seen = 0
        self.cost = 0.0
        self.val_loss = math.nan
        self.validations: list[Validation] = []
        self.reached = self.exhausted = self.diverged = self.released = False

    @property
    def finished(self) -> bool:
        """Nothing more can be decided."""
        return self.reached or self.exhausted or self.diverged

    def sizes_after(self, log2_changes: float | Array) -> Array:
        """Return the whole batch sizes, within the run's bounds, to which changes lead."""
        limits = int(self.context.min_batch_size), int(self.context.max_batch_size)
        return np.clip(np.round(np.exp2(np.log2(self.batch_size) + log2_changes)), *limits)

    def advance(self, batch_size: int) -> Signals:
        """Run one chunk and return what it showed.

        The chunk ends early at the target or when the budget is spent. A chunk that the guard rolls
        back stays paid for, and the batch size before it is in force again.

        Args:
            batch_size: Samples per optimizer step, within the run's bounds; of no account once the
                run is `released`.

        Raises:
            ConfigurationError: The batch size is out of bounds, or the run has finished.
        """
        if self.finished:
            raise ConfigurationError("This run has finished. Start a new one.")
        low, high = int(self.context.min_batch_size), int(self.context.max_batch_size)
        if not low <= batch_size <= high:
            raise ConfigurationError(
                f"A batch size from {low} to {high} was expected, got {batch_size}. Clip it first."
            )
        if self.released:
            batch_size = min(max(self.task.batch_size, low), high)
        before, cost_before = self.batch_size, self.cost
        validated_before = len(self.validations)
        self.batch_size = batch_size
        if self._guard is not None:
            self.backend.remember()
        with self.backend.chunk():
            factor = self._train_chunk()
        self._clock.end_chunk()
        measured = self.backend.finish()
        rolled_back = self._judge(measured, before)
        curve, known = self._clock.curve()
        signals = chunk_signals(
            self.context,
            measured,
            batch_size=batch_size,
            total_steps=self.steps,
            total_samples=self.samples_seen,
            chunk_cost=self.cost - cost_before,
            total_cost=self.cost,
            val_loss=self.val_loss if len(self.validations) > validated_before else math.nan,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            learning_rate_factor=factor,
            step_cost_curve=curve,
            step_cost_known=known,
            rolled_back=rolled_back,
        )
        if rolled_back:
            self.batch_size = before
        else:
            self._coupling.observe(measured)
        return signals

    def _train_chunk(self) -> float:
        steps = self.cadence.chunk_steps(self.steps)
        factor = self._coupling.set_batch_size(self.batch_size)
        budget = math.inf if self.objective.budget is None else self.objective.budget
        last = math.inf if self._max_steps is None else self._max_steps
        planned = self.objective.planned_samples or math.inf
        self._clock.start()
        for _ in range(steps):
            self._train_step(is_measured(self.steps, self._noise_rate))
            self.exhausted = (
                self.cost >= budget or self.steps >= last or self.samples_seen >= planned
            )
            if self.steps >= self._next_validation or self.exhausted:
                self.validate()
                self._clock.start()
                self._next_validation = self.steps + self.cadence.validation_steps(self.steps)
            if self.finished:
                break
        return factor

    def _judge(self, measured: ChunkMeasurement, before: int) -> bool:
        """Roll the chunk back if it did damage; a run that met its target is past harm."""
        if self.reached:
            return False
        if self._guard is None or self.released:
            self.diverged = measured.nonfinite_losses > 0
            return False
        losses = ChunkLoss(
            self.batch_size,
            measured.steps,
            measured.train_loss,
            measured.train_loss_std,
            measured.nonfinite_losses,
            changed=self.batch_size != before,
        )
        damaged, self._guard_state = judge(self._guard_state, self._guard, losses)
        if damaged:
            self.backend.restore()
            self.released = self._guard_state.diverged
            if self.exhausted:
                self.validate()  # the last word is on the weights that remain
        return damaged

    def _train_step(self, measured: bool) -> None:
        indices = self._order.take(self.batch_size)
        size = len(indices)
        sizes = [size - size // 2, size // 2] if measured and size > 1 else [size]
        self.backend.step(indices, sizes, measured, self._rate.applied)
        self.steps += 1
        self.samples_seen += size
        self._schedule.advance(self.samples_seen)
        self.cost += self._clock.lap(size, len(sizes))

    def validate(self) -> float:
        """Evaluate the model now, note the loss, and return it. Costs nothing."""
        self.val_loss = self.backend.validation_loss()
        self.validations.append(Validation(self.steps, self.samples_seen, self.cost, self.val_loss))
        target = self.objective.target_loss
        self.reached = target is not None and self.val_loss <= target
        self.exhausted = self.exhausted and not self.reached
        return self.val_loss


def _require_bounds(low: int, start: int, high: int, dataset_size: int) -> None:
    if not 1 <= low <= start <= high <= dataset_size:
        raise ConfigurationError(
            "Expected 1 <= min_batch_size <= start_batch_size <= max_batch_size <= samples, "
            f"got {low}, {start}, {high}, {dataset_size}. Move the bounds."
        )
