"""Simulated training runs, advanced together chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbatch.control.guard import GuardConfig
from rlbatch.envs.clock import MEASURED_SHARE
from rlbatch.envs.simulator import dynamics
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.guard import ChunkLosses, initial_states, judge_all
from rlbatch.envs.simulator.tasks import ADAM_BETA2, BINS, SimulatedTasks
from rlbatch.observation import step_cost_at
from rlbatch.signals import cadence
from rlbatch.signals.record import RunContext, Signals

_TINY = 1e-30
_PASS_SHARE = 0.8  # of a step's cost; the rest is the update's
_SAMPLE_SPREAD = 2.0  # variance of the samples' squared gradient norms, over their mean's square
_EDGE = 0.75  # of the stability limit
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
        squared = self._squared_gradient(t.base_batch_size, np.ones(len(t)))[index]
        precondition = np.where(t.adaptive[index, None] > 0, 1.0 / np.sqrt(squared + _TINY), 1.0)
        sharpest = (precondition * t.curvature[index]).max(axis=1)
        limit = dynamics.stability_limit(t.momentum[index])
        self.step_size[index] = t.step_size[index] * limit / (sharpest * self._inertia()[index])

    def _inertia(self) -> Array:
        """1 - beta1 for Adam, whose first moment is an average; 1 for heavy-ball, a sum."""
        return np.where(self.tasks.adaptive > 0, 1.0 - self.tasks.momentum, 1.0)

    def _noise_level(self) -> Array:
        t = self.tasks
        return 1.0 - t.interpolation + t.interpolation * np.minimum(self.loss.sum(axis=1), 1.0)

    def _liveliness(self) -> Array:
        """Factor of every curvature: a network that has learned nothing yet hardly responds.

        The strength of a mode of a deep linear network grows by its own strength, so that its loss
        falls along a sigmoid (Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks", arXiv:1312.6120). This is no formula of theirs:
        here all directions grow together, linearly in the share of the initial loss that is gone.
        """
        t = self.tasks
        learned = np.clip((1.0 - self.loss.sum(axis=1)) / np.maximum(t.slow_until, _TINY), 0.0, 1.0)
        return t.slow_start + (1.0 - t.slow_start) * learned

    def _squared_gradient(self, batch_size: Array, liveliness: Array) -> Array:
        """Mean squared gradient per coordinate and bin, up to a constant: signal plus noise."""
        t = self.tasks
        noise = (self._noise_level() / batch_size)[:, None]
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
        trace, squared = self._noise_trace(1.0), self._gradient_norm(1.0)
        noise = trace / t.base_batch_size
        gain = (noise + squared) / (noise / ratio + squared + _TINY)
        return np.where(t.adascale > 0, np.where(t.adaptive > 0, np.sqrt(gain), gain), factor)

    def _noise_trace(self, precondition: Array | float) -> Array:
        t = self.tasks
        total = (t.noise * t.curvature * precondition).sum(axis=1)
        return 2.0 * self._noise_level() * self._liveliness() * total

    def _gradient_norm(self, precondition: Array | float) -> Array:
        total = (self.tasks.curvature * self.loss * precondition).sum(axis=1)
        return 2.0 * self._liveliness() * total

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
        factor, schedule = self.coupling_factor(batch_size), self.schedule_factor()
        old = self.loss, self.second_moment.copy(), self.second_moment_weight
        precondition = self._precondition(batch_size, steps)
        before = self.validation_loss()
        measured = self._measured(batch_size, steps)
        statistics = None if self.exact else self._measure(batch_size, measured, precondition)
        exploded, level = self._descend(batch_size, steps, factor * schedule, precondition)
        losses = self._training_losses(batch_size, steps, exploded, level, old[0])
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
        signals = self._signals(losses, cost, factor, schedule, undone, after, statistics)
        return ChunkOutcome(signals, before, after, cost, undone)

    def _cost(self, batch_size: Array, steps: Array, measured: Array) -> Array:
        single = 2.0 ** step_cost_at(self.tasks.step_cost_curve, np.log2(batch_size))
        return (steps + measured * _PASS_SHARE * MEASURED_SHARE) * single

    def _training_losses(
        self, batch_size: Array, steps: Array, exploded: Array, level: Array, loss_before: Array
    ) -> ChunkLosses:
        """What a live run would have measured of the chunk's losses.

        Args:
            batch_size: Of the chunks.
            steps: Of the chunks.
            exploded: Where the step size was fatal. No closed form says how far such a chunk gets;
                four times the loss before it stands for that.
            level: Noise-free mean training loss.
            loss_before: Of the chunks, per bin.
        """
        t, n = self.tasks, len(self.tasks)
        before = t.irreducible + loss_before.sum(axis=1)
        level = np.where(exploded, before, level)
        draws = np.zeros((2, n)) if self.exact else self.rng.standard_normal((2, n))
        noise = t.loss_noise * level / np.sqrt(batch_size)
        mean = np.maximum(level + noise / np.sqrt(steps) * draws[0], 0.02 * level)
        spread = noise * np.exp(draws[1] / np.sqrt(2.0 * np.maximum(steps, 2)))
        return ChunkLosses(
            batch_size=batch_size,
            steps=steps,
            mean=np.where(exploded, 4.0 * before, mean),
            std=np.where(steps > 1, spread, 0.0),
            exploded=exploded,
            changed=batch_size != self.batch_size,
        )

    def _judge(self, losses: ChunkLosses) -> Array:
        """Return where the guard undoes the chunk; note where nobody does and the run is lost."""
        if self.exact:
            self.diverged = losses.exploded
            return np.zeros(len(self.tasks), dtype=bool)
        damaged, judged = judge_all(self.guard, _GUARD, losses)
        released = self.released.copy()
        self.diverged = losses.exploded & released
        self.guard = np.where(released, self.guard, judged)
        return damaged & ~released

    def _measured(self, batch_size: Array, steps: Array) -> Array:
        """How many of the coming steps are measured; a single sample shows no noise."""
        rate = self._noise_rate
        count = cadence.measured_among(self.steps + steps, rate)
        return np.where(batch_size > 1, count - cadence.measured_among(self.steps, rate), 0.0)

    def _precondition(self, batch_size: Array, steps: Array) -> Array | float:
        t = self.tasks
        if not t.adaptive.any():
            return 1.0
        decay = ADAM_BETA2**steps
        weight = decay * self.second_moment_weight + (1.0 - decay)
        self.second_moment *= decay[:, None]
        self.second_moment += (1.0 - decay)[:, None] * self._squared_gradient(
            batch_size, self._liveliness()
        )
        self.second_moment_weight = weight
        adam = 1.0 / np.sqrt(self.second_moment / weight[:, None] + _TINY)
        return np.where(t.adaptive[:, None] > 0, adam, 1.0)

    def _velocity(self, steps: Array) -> Array:
        """Mean over the coming steps of what heavy-ball's velocity has gathered, 1 - m^t.

        Without it the first steps of a run would move as far as those of a run under way. Adam's
        first moment is corrected for its start.
        """
        t = self.tasks
        momentum = np.where(t.adaptive > 0, 0.0, t.momentum)
        missing = momentum ** (self.steps + 1.0) * (1.0 - momentum**steps) / (1.0 - momentum)
        return 1.0 - missing / steps

    def _descend(
        self, batch_size: Array, steps: Array, rate: Array, precondition: Array | float
    ) -> tuple[Array, Array]:
        """Apply the steps; return where they are fatal, and the mean training loss."""
        t = self.tasks
        progress = np.minimum(self.samples / (t.base_batch_size * t.horizon), 2.0)
        sharpening = 1.0 + (t.sharpening - 1.0) * (1.0 - np.exp(-3.0 * progress))
        # Sharp directions sharpen most: h -> h s^h (h = 1 is the sharpest).
        curvature = t.curvature * np.exp(np.log(sharpening)[:, None] * t.curvature)
        momentum = t.momentum[:, None]
        limit = dynamics.stability_limit(t.momentum)
        scale = self.step_size * rate * self._inertia() * self._liveliness() * self._velocity(steps)
        step = scale[:, None] * precondition
        y = step * curvature
        # Progressive sharpening stops by itself at the edge of stability; only a step size above
        # what the *unsharpened* curvature bears by the factor `catapult` is fatal (Cohen et al.
        # 2021; Lewkowycz et al. 2020).
        ratio = y.max(axis=1) / limit
        flat_ratio = (step * t.curvature).max(axis=1) / limit
        fatal = flat_ratio > t.catapult
        # A rise of the step size beyond the edge throws the run back; what it lost it has to learn
        # again.
        raised = rate > self.previous_rate * 1.0001
        excess = np.clip(np.minimum(ratio, flat_ratio * 2.0) - 1.0, 0.0, 2.0) * np.where(
            raised, 1.0, 0.1
        )
        damaged = self.loss * (1.0 + t.damage * excess)[:, None]
        # At the edge the motion is bounded by the loss's higher-order terms, not by the quadratic
        # one; a y close to the limit would instead amplify noise without bound. Sharpening is a
        # property of the large directions of the noise-free motion, so that it does not raise the
        # injected noise either.
        y = np.minimum(y, _EDGE * limit[:, None])
        flat = np.minimum(step * t.curvature, y)
        noise = np.square(flat) * t.noise * (self._noise_level() / batch_size)[:, None]
        moved = damaged, y, momentum, noise, steps[:, None]
        if self.exact:
            self.loss = dynamics.advance(*moved)
        else:
            self.loss = dynamics.advance_sampled(*moved, t.directions[:, None], self.rng)
        level = t.irreducible + 0.5 * (damaged.sum(axis=1) + self.loss.sum(axis=1))
        return fatal | ~np.isfinite(level), level

    def _measure(
        self, batch_size: Array, count: Array, precondition: Array | float
    ) -> tuple[Array, ...]:
        """Gradient statistics as the samples' gradients would show them.

        Variances: Var(G2) = 4 G'SG / B + 2 tr(S^2) k / ((k - 1) B^2) with k = B samples, tr(S^2) =
        tr(S)^2 / n_eff and G'SG = |G|^2 tr(S) / n_eff; the trace is a mean over B samples.
        """
        t, n = self.tasks, len(self.tasks)
        squared, trace = self._gradient_norm(precondition), self._noise_trace(precondition)
        measured = np.maximum(count, 1.0)
        dimension = t.effective_dimension
        grad_se = np.sqrt(
            (
                4 * squared * trace / batch_size
                + 2 * np.square(trace) / (batch_size * np.maximum(batch_size - 1.0, 1.0))
            )
            / dimension
            / measured
        )
        variance = 2.0 / dimension / np.maximum(batch_size - 1.0, 1.0) + _SAMPLE_SPREAD / batch_size
        trace_se = trace * np.sqrt(variance / measured)
        draws = self.rng.standard_normal((4, n))
        spread = np.exp(0.3 * draws[3])  # the standard error is itself estimated from a few steps
        cosine = 1.0 / (1.0 + 2.0 * trace / np.maximum(squared, _TINY) / batch_size)
        cosine = np.clip(
            cosine + draws[2] * (1.0 - cosine) / np.sqrt(dimension * measured), -1.0, 1.0
        )
        values = (
            squared + grad_se * draws[0],
            grad_se * spread,
            np.maximum(trace + trace_se * draws[1], 0.01 * trace),
            trace_se * spread,
            cosine,
        )
        return tuple(np.where(count > 0, value, np.nan) for value in values)

    def _signals(
        self,
        losses: ChunkLosses,
        cost: Array,
        factor: Array,
        schedule: Array,
        undone: Array,
        validation: Array,
        statistics: tuple[Array, ...] | None,
    ) -> Signals:
        t, n = self.tasks, len(self.tasks)
        if statistics is None:
            statistics = (np.full(n, np.nan),) * 5
        noise = np.zeros(n) if self.exact else self.rng.standard_normal(n)
        val_loss = np.where(
            t.sees_validation > 0, validation * (1.0 + t.validation_noise * noise), np.nan
        )
        inertia = np.where(t.adaptive > 0, 1.0, 1.0 - t.momentum)
        known = np.maximum(
            t.cost_known, np.minimum(np.log2(self.largest_size / self.smallest_size) / 2.0, 1.0)
        )
        return Signals(
            context=self.context(),
            batch_size=losses.batch_size,
            steps=losses.steps,
            total_steps=self.steps.copy(),
            total_samples=self.samples.copy(),
            chunk_cost=cost,
            total_cost=self.cost.copy(),
            train_loss=losses.mean,
            train_loss_std=losses.std,
            val_loss=val_loss,
            grad_sqr=statistics[0],
            grad_sqr_se=statistics[1],
            noise_trace=statistics[2],
            noise_trace_se=statistics[3],
            gradient_cosine=statistics[4],
            predicted_decrease=losses.steps
            * self.step_size
            * factor
            * schedule
            / inertia
            * statistics[0],
            learning_rate_factor=factor,
            schedule_factor=schedule,
            step_cost_curve=self._believed_cost_curve(losses.batch_size, known),
            step_cost_known=known,
            nonfinite_steps=np.zeros(n),
            rolled_back=undone.astype(np.float64),
        )

    def _believed_cost_curve(self, batch_size: Array, known: Array) -> Array:
        """The true curve, blended with a prior (knee at the current size) while not known."""
        t = self.tasks
        sizes = np.log2(
            1.0 + 2.0 ** (np.arange(t.step_cost_curve.shape[1]) - np.log2(batch_size)[:, None])
        )
        prior = sizes - 1.0 + step_cost_at(t.step_cost_curve, np.log2(batch_size))[:, None]
        return known[:, None] * t.step_cost_curve + (1.0 - known)[:, None] * prior

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
