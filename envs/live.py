"""A real PyTorch run of a task, advanced chunk by chunk by decisions from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from rlbatch.control.coupled_rate import CoupledRate
from rlbatch.control.guard import ChunkLoss, GuardState, judge
from rlbatch.control.torch_parts import TorchRate
from rlbatch.data.step_plan import resize
from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.clock import Clock, make_clock
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.sample_order import SampleOrder
from rlbatch.envs.sample_schedule import SampleSchedule
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.assemble import chunk_signals, run_context
from rlbatch.signals.cadence import is_measured
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.record import Array, RunContext, Signals


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
        conditions: What the run is under.
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
        tried_steps: Optimizer steps of `trial`s, which are not among `steps`.
        tried_samples: Their samples, which are not among `samples_seen`.
    """

    def __init__(
        self,
        task: Task,
        conditions: RunConditions | None = None,
        *,
        backend: BackendMaker = TorchBackend,
        **settings: Any,
    ) -> None:
        """Build the model and everything else that the seed determines.

        Args:
            task: What is trained.
            conditions: Everything else about the run.
            backend: Makes the weights, from the task, the seed and the scale of the learning rate.
            settings: Fields of `RunConditions`, where no `conditions` are given.

        Raises:
            ConfigurationError: Bounds exclude each other, or the schedule's length is missing.
        """
        given = RunConditions(**settings) if conditions is None else replace(conditions, **settings)
        self.task, self.conditions, self.objective = task, given, given.objective
        self.cadence = given.cadence
        size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
        low, high = given.min_batch_size, given.max_batch_size or task.max_batch_size or size
        start = given.start_batch_size
        self.batch_size = task.batch_size if start is None else start
        _require_bounds(low, self.batch_size, high, size)
        self.backend = backend(task, given.seed, given.learning_rate_scale)
        self.optimizer = self.backend.optimizer
        self._schedule = SampleSchedule(task, self.optimizer, given.planned_steps)
        self._order = SampleOrder(size, given.seed)
        self._clock: Clock = make_clock(
            given.profile, self.objective.weights, task.batch_size, curve_known=given.curve_known
        )
        self._rate = TorchRate(self.optimizer)
        self._coupling = CoupledRate(self._rate, given.coupling, task.batch_size)
        self._measuring_rate, self._guard = given.measuring_rate, given.guard_limits
        self._guard_state = GuardState()
        self._next_validation = self.cadence.validation_steps(0)
        self.context = self._constants(low, high, size)
        self.steps = self.samples_seen = self.tried_steps = self.tried_samples = 0
        self.cost = 0.0
        self.val_loss = math.nan
        self.validations: list[Validation] = []
        self.reached = self.exhausted = self.diverged = self.released = False

    def _constants(self, low: int, high: int, dataset_size: int) -> RunContext:
        given, task, weights = self.conditions, self.task, self.objective.weights
        told = given.planned_steps if given.plan_known else None
        return run_context(
            self._rate,
            given.coupling,
            base_batch_size=task.batch_size,
            min_batch_size=low,
            max_batch_size=high,
            dataset_size=dataset_size,
            target_loss=self.objective.target_loss,
            budget=self.objective.budget,
            weights=(weights.seconds, weights.samples, weights.joules),
            planned_samples=self.objective.planned_samples or (told and told * task.batch_size),
        )

    @property
    def finished(self) -> bool:
        """Nothing more can be decided."""
        return self.reached or self.exhausted or self.diverged

    @property
    def held(self) -> bool:
        """The next chunk stays at the size in force, to tell whether the one before was to blame.

        It follows a chunk that was undone for a loss that rose, see `GuardConfig`.
        """
        return self._guard_state.suspected and not self.finished

    def sizes_after(self, log2_changes: float | Array) -> Array:
        """Return the whole batch sizes, within the run's bounds, to which changes lead."""
        limits = int(self.context.min_batch_size), int(self.context.max_batch_size)
        return resize(self.batch_size, log2_changes, *limits)

    def advance(self, batch_size: int) -> Signals:
        """Run one chunk and return what it showed.

        The chunk ends early at the target or when the budget is spent. A chunk that the guard rolls
        back stays paid for, and the batch size before it is in force again.

        Args:
            batch_size: Samples per optimizer step, within the run's bounds; of no account where the
                run is `held` or `released`.

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
        if self.held:
            batch_size = self.batch_size
        if self.released:
            batch_size = min(max(self.task.batch_size, low), high)
        before, cost_before, validated = self.batch_size, self.cost, len(self.validations)
        self.batch_size = batch_size
        if self._guard is not None:
            self.backend.remember()
        with self.backend.chunk():
            factor = self._train_chunk()
        self._clock.end_chunk()
        measured = self.backend.finish()
        rolled_back = self._judge(measured, before)
        signals = chunk_signals(
            self.context,
            measured,
            batch_size=batch_size,
            total_steps=self.steps,
            total_samples=self.samples_seen,
            chunk_cost=self.cost - cost_before,
            total_cost=self.cost,
            val_loss=self.val_loss if len(self.validations) > validated else math.nan,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            learning_rate_factor=factor,
            step_cost_curve=self._clock.curve(),
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
        last = self.conditions.max_steps or math.inf
        planned = self.objective.planned_samples or math.inf
        self._clock.start()
        for _ in range(steps):
            self._train_step(is_measured(self.steps, self._measuring_rate))
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
        measured = measured and size > 1
        self.backend.step(indices, measured, self._rate.applied)
        self.steps += 1
        self.samples_seen += size
        self._schedule.advance(self.samples_seen)
        self.cost += self._clock.lap(size, measured)

    def trial(self, batch_size: int, samples: int) -> float:
        """Train a copy of the run for a while and return its loss; of the run only `cost` moves.

        Copies see the samples that come next in the run. The schedule stands still.

        Args:
            batch_size: Samples per optimizer step, to which the learning rate is coupled.
            samples: How many; the second half begins with a step.

        Returns:
            Mean training loss over the second half; infinite where a loss was not finite.
        """
        order = self._order.copy()
        self._coupling.set_batch_size(batch_size)
        self._clock.start()
        with self.backend.aside():
            self._steps_aside(order, batch_size, samples / 2)
            first = self.backend.finish()
            self._steps_aside(order, batch_size, samples / 2)
            second = self.backend.finish()
        self._clock.end_chunk()
        if self.cost >= (self.objective.budget or math.inf):
            self.exhausted = True
            self.validate()
        finite = first.nonfinite_losses + second.nonfinite_losses == 0
        return second.train_loss if finite else math.inf

    def _steps_aside(self, order: SampleOrder, batch_size: int, samples: float) -> None:
        taken = 0
        while taken < samples:
            indices = order.take(batch_size)
            self.backend.step(indices, False, self._rate.applied)
            self.cost += self._clock.lap(len(indices), False)
            taken += len(indices)
            self.tried_steps += 1
        self.tried_samples += taken

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
