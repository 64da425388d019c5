"""Simulated training runs, advanced together chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbatch.control.guard import GuardConfig
from rlbatch.envs.clock import MEASURED_SHARE
from rlbatch.envs.simulator import dynamics
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.descent import descend, precondition_of
from rlbatch.envs.simulator.guard import ChunkLosses, initial_states, judge_all
from rlbatch.envs.simulator.signals import chunk_signals, measure, training_losses
from rlbatch.envs.simulator.tasks import BINS, SimulatedTasks
from rlbatch.observation import step_cost_at
from rlbatch.signals import cadence
from rlbatch.signals.record import RunContext, Signals

_TINY = 1e-30
_PASS_SHARE = 0.8  # of a step's cost; the rest is the update's
_GUARD = GuardConfig()


@dataclass
class ChunkOutcome:
    """What one chunk did to every run.

    Attributes:
        signals: What a live run would have measured.
        validation_before: Noise-free validation loss at the start of the chunk.
        validation_after: And at its end.
        cost: Cost of the chunk.
        rolled_back: True where the guard undid the chunk.
    """

    signals: Signals
    validation_before: Array
    validation_after: Array
    cost: Array
    rolled_back: Array


class QuadraticRuns:
    """`n` runs on the noisy quadratic model; every attribute has one entry a run.

    The gradient noise of a run has per-sample covariance proportional to the curvature.
    `SimulatedTasks.noise` holds nu_i = n_i sigma^2 / 2 for bin i, so that one step of size a at
    batch size B adds the loss a^2 h_i^2 nu_i / B.

    The guard is that of a live run, by the same rule and in the same words (`LiveRun`).

    Attributes:
        batch_size: In force: of the last chunk, or of the one before where that was undone.
        released: Undoing chunks did not help: the run goes on at the task's size, unguarded.
        diverged: The weights are lost; there is no guard, or it has given up.
    """

    def __init__(
        self,
        tasks: SimulatedTasks,
        rng: np.random.Generator,
        *,
        exact: bool = False,
        noise_rate: float = cadence.NOISE_RATE,
    ) -> None:
        """Start one run for each task.

        Args:
            tasks: One task a run.
            rng: Source of the measurement noise.
            exact: True follows the mean of all runs and leaves measurements and the guard out
                (reference runs): `advance` then returns no usable signals.
            noise_rate: See `cadence.measured_among`; what measuring costs is charged.
        """
        n = len(tasks)
        self.tasks, self.rng, self.exact = tasks, rng, exact
        self._noise_rate = 0.0 if exact else noise_rate
        self.loss = np.empty((n, BINS))
        self.second_moment = np.empty((n, BINS))
        zeros = (np.zeros(n) for _ in range(9))
        self.second_moment_weight, self.step_size, self.samples, self.steps, self.cost, *rest = (
            zeros
        )
        self.previous_rate, self.batch_size, self.smallest_size, self.largest_size = rest
        self.diverged = np.zeros(n, dtype=bool)
        self._held: tuple[Array, Array] | None = None  # noise level and liveliness, in a chunk
        self.guard = initial_states(n)
        self.start(np.arange(n))

    def start(self, index: Array) -> None:
        """Put the runs at these positions at the start of their tasks."""
        t = self.tasks
        self.loss[index] = t.initial_loss[index]
        self.second_moment[index] = 0.0
        for values in (
            self.second_moment_weight,
            self.samples,
            self.steps,
            self.cost,
            self.previous_rate,
        ):
            values[index] = 0.0
        self.batch_size[index] = t.start_batch_size[index]
        self.diverged[index] = False
        self.guard[index] = initial_states(len(index))
        self.smallest_size[index] = np.inf
        self.largest_size[index] = 0.0
        # The step size is drawn for the network that has come to life, as users tune it.
        noise = (self._noise_level(index) / t.base_batch_size[index])[:, None]
        squared = t.curvature[index] * (self.loss[index] / t.noise[index] + noise)
        precondition = np.where(t.adaptive[index, None] > 0, 1.0 / np.sqrt(squared + _TINY), 1.0)
        sharpest = (precondition * t.curvature[index]).max(axis=1)
        limit = dynamics.stability_limit(t.momentum[index])
        self.step_size[index] = t.step_size[index] * limit / (sharpest * self.inertia()[index])

    def inertia(self) -> Array:
        """1 - beta1 for Adam, whose first moment is an average; 1 for heavy-ball, a sum."""
        return np.where(self.tasks.adaptive > 0, 1.0 - self.tasks.momentum, 1.0)

    def noise_level(self) -> Array:
        """Share of the first gradient noise that is left."""
        if self._held is not None:
            return self._held[0]
        return self._noise_level(slice(None))

    def _noise_level(self, index: Array | slice) -> Array:
        share = self.tasks.interpolation[index]
        return 1.0 - share + share * np.minimum(self.loss[index].sum(axis=1), 1.0)

    def liveliness(self) -> Array:
        """Factor of every curvature: a network that has learned nothing yet hardly responds.

        The strength of a mode of a deep linear network grows by its own strength, so that its loss
        falls along a sigmoid (Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks", arXiv:1312.6120). This is no formula of theirs:
        here all directions grow together, linearly in the share of the initial loss that is gone.
        """
        if self._held is not None:
            return self._held[1]
        t = self.tasks
        learned = np.clip((1.0 - self.loss.sum(axis=1)) / np.maximum(t.slow_until, _TINY), 0.0, 1.0)
        return t.slow_start + (1.0 - t.slow_start) * learned

    def squared_gradient(self, batch_size: Array, liveliness: Array) -> Array:
        """Mean squared gradient per coordinate and bin, up to a constant: signal plus noise."""
        t = self.tasks
        noise = (self.noise_level() / batch_size)[:, None]
        return liveliness[:, None] * t.curvature * (self.loss / t.noise + noise)

    def validation_loss(self) -> Array:
        """Noise-free validation loss."""
        t = self.tasks
        gap = t.gap * (1.0 - np.exp(-self.samples / t.dataset_size / 8.0))
        return t.irreducible + self.loss.sum(axis=1) + gap

    def schedule_factor(self) -> Array:
        """Factor of the user's learning-rate schedule at the run's position in samples."""
        t = self.tasks
        progress = np.minimum(self.samples / (t.base_batch_size * t.horizon), 1.0)
        factors = np.ones_like(progress)
        cosine, step, warm_up = t.schedule == 1, t.schedule == 2, t.schedule == 3
        factors = np.where(cosine, 0.02 + 0.49 * (1.0 + np.cos(np.pi * progress)), factors)
        factors = np.where(
            step, np.where(progress > 0.5, np.where(progress > 0.8, 0.04, 0.2), 1.0), factors
        )
        return np.where(warm_up, np.minimum(0.05 + progress / 0.1, 1.0), factors)

    def coupling_factor(self, batch_size: Array) -> Array:
        """Factor by which the coupling changes the learning rate."""
        t = self.tasks
        ratio = batch_size / t.base_batch_size
        factor = ratio**t.coupling_exponent
        if not t.adascale.any():
            return factor
        trace, squared = self.noise_trace(1.0), self.gradient_norm(1.0)
        noise = trace / t.base_batch_size
        gain = (noise + squared) / (noise / ratio + squared + _TINY)
        return np.where(t.adascale > 0, np.where(t.adaptive > 0, np.sqrt(gain), gain), factor)

    def noise_trace(self, precondition: Array | float) -> Array:
        """Trace of one sample's gradient covariance, in the metric."""
        t = self.tasks
        total = (t.noise * t.curvature * precondition).sum(axis=1)
        return 2.0 * self.noise_level() * self.liveliness() * total

    def gradient_norm(self, precondition: Array | float) -> Array:
        """Squared norm of the mean gradient, in the metric."""
        total = (self.tasks.curvature * self.loss * precondition).sum(axis=1)
        return 2.0 * self.liveliness() * total

    def chunk_steps(self) -> Array:
        """Optimizer steps of the next chunk."""
        t = self.tasks
        return cadence.chunk_steps(self.steps, t.chunk_minimum, t.chunk_growth)

    @property
    def released(self) -> Array:
        """True where the guard has given up."""
        return self.guard["diverged"]

    @property
    def held(self) -> Array:
        """True where the chunk stays at the size in force, to tell whether that was to blame."""
        return self.guard["suspected"]

    def advance(self, batch_size: Array) -> ChunkOutcome:
        """Train one chunk at these batch sizes; of no account where `held` or `released`."""
        t = self.tasks
        own = np.clip(t.base_batch_size, t.min_batch_size, t.max_batch_size)
        batch_size = np.where(self.held, self.batch_size, batch_size)
        batch_size = np.where(self.released, own, batch_size)
        steps = self.chunk_steps()
        self._held = self.noise_level(), self.liveliness()  # asked ten times while the loss stays
        factor, schedule = self.coupling_factor(batch_size), self.schedule_factor()
        old = self.loss, self.second_moment.copy(), self.second_moment_weight
        precondition = precondition_of(self, batch_size, steps)
        before = self.validation_loss()
        measured = self._measured(batch_size, steps)
        statistics = None if self.exact else measure(self, batch_size, measured, precondition)
        exploded, level = descend(self, batch_size, steps, factor * schedule, precondition)
        self._held = None
        losses = training_losses(self, batch_size, steps, exploded, level, old[0])
        undone = self._judge(losses)
        lost = undone | self.diverged
        self.loss[lost] = old[0][lost]
        self.second_moment[lost] = old[1][lost]
        self.second_moment_weight = np.where(lost, old[2], self.second_moment_weight)
        self.previous_rate = np.where(lost, self.previous_rate, factor * schedule)
        self.batch_size = np.where(undone, self.batch_size, batch_size)
        cost = self._cost(batch_size, steps, measured)
        self.samples += steps * batch_size
        self.steps += steps
        self.cost += cost
        np.fmin(self.smallest_size, batch_size, out=self.smallest_size)
        np.fmax(self.largest_size, batch_size, out=self.largest_size)
        after = self.validation_loss()
        signals = chunk_signals(self, losses, cost, factor, schedule, undone, after, statistics)
        return ChunkOutcome(signals, before, after, cost, undone)

    def _cost(self, batch_size: Array, steps: Array, measured: Array) -> Array:
        single = 2.0 ** step_cost_at(self.tasks.step_cost_curve, np.log2(batch_size))
        return (steps + measured * _PASS_SHARE * MEASURED_SHARE) * single

    def _judge(self, losses: ChunkLosses) -> Array:
        """Return where the guard undoes the chunk; note where nobody does and the run is lost."""
        if self.exact:
            self.diverged = losses.exploded
            return np.zeros(len(self.tasks), dtype=bool)
        damaged, judged = judge_all(self.guard, _GUARD, losses)
        released = self.released.copy()
        self.diverged = losses.exploded & released
        self.guard = np.where(released, self.guard, judged) if released.any() else judged
        return damaged & ~released

    def _measured(self, batch_size: Array, steps: Array) -> Array:
        """How many of the coming steps are measured; a single sample shows no noise."""
        rate = self._noise_rate
        count = cadence.measured_among(self.steps + steps, rate)
        return np.where(batch_size > 1, count - cadence.measured_among(self.steps, rate), 0.0)

    def context(self) -> RunContext:
        """The runs' constants. The target is filled in by the pool that drew it."""
        t, n = self.tasks, len(self.tasks)
        return RunContext(
            base_batch_size=t.base_batch_size,
            min_batch_size=t.min_batch_size,
            max_batch_size=t.max_batch_size,
            dataset_size=t.dataset_size,
            learning_rate=self.step_size,
            momentum=t.momentum,
            adaptive=t.adaptive,
            coupling_exponent=t.coupling_exponent,
            adascale=t.adascale,
            target_loss=self.target_loss,
            budget=np.full(n, np.nan),
            weight_seconds=t.weight_seconds,
            weight_samples=t.weight_samples,
            weight_joules=np.zeros(n),
            planned_samples=np.where(t.plan_known > 0, t.base_batch_size * t.horizon, np.nan),
        )

    target_loss: Array | float = float("nan")
    """Validation loss that ends each run; set by whoever owns the runs."""
