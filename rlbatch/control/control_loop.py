"""Watches the steps of one training, decides after each chunk, undoes damage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlbatch.control.chunk_decider import ChunkDecider
from rlbatch.control.config import ControllerConfig
from rlbatch.control.cost_tracker import CostTracker
from rlbatch.control.coupled_rate import CoupledRate
from rlbatch.control.decision_logger import DecisionLogger, Place
from rlbatch.control.engine import AppliedDecision, DecisionEngine
from rlbatch.control.loop_progress import LoopProgress
from rlbatch.control.loop_state import LoopState
from rlbatch.control.ranks import Ranks
from rlbatch.control.rollback import Rollback
from rlbatch.control.saved_state import all_or_nothing
from rlbatch.control.training_parts import TrainingParts
from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import Event
from rlbatch.signals.assemble import chunk_signals
from rlbatch.signals.cadence import next_measured
from rlbatch.signals.record import Coupling, RunContext, Signals

_OFF = 0  # agreed on instead of a batch size


class ControlLoop:
    """Turns the steps of a run into chunks, and chunks into decisions.

    For each step call `begin_step`, and `end_step` after that of the optimizer, made at its rate
    times `rate.factor`. In between, while `watching`, tell `monitor` of each micro-batch.

    Attributes:
        watching: The step under way belongs to a chunk.
        progress: How far the run is, and the batch size that was decided last.
        context: The run's constants.
        config: The settings.
        rate: The coupled learning rate.
        cost_tracker: The cost.
        guard: Undoes chunks that did damage.
        logger: Writes what is decided.
        monitor: Watches losses and gradients.
        last: The latest decision.
    """

    def __init__(
        self,
        parts: TrainingParts,
        engine: DecisionEngine,
        context: RunContext,
        config: ControllerConfig,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare a run that starts at the user's batch size.

        Args:
            parts: The training, as its framework shows it.
            engine: Decides.
            context: The run's constants.
            config: The settings.
            ranks: The processes that train together; None for this one alone.
        """
        self.ranks = Ranks() if ranks is None else ranks
        self.config, self.context, self.logger = config, context, DecisionLogger()
        self._learning_rate, self.monitor = parts.rate, parts.monitor
        self.base_batch_size = round(float(context.base_batch_size))
        self.rate = CoupledRate(parts.rate, Coupling(config.lr_coupling), self.base_batch_size)
        self.cost_tracker = CostTracker(config)
        self._measuring_rate = config.measuring_rate(engine.noise_rate)
        self._measured_at: float = -1  # step of the run whose noise is measured next
        self.guard = Rollback(parts.weights, config.guard, self.ranks)
        self.progress = LoopProgress.at_start(context)
        self.watching = self._resumed = self._asks = False
        self._saved = LoopState(
            progress=self.progress,
            guard=self.guard,
            engine=engine,
            rate=self.rate,
            cost_tracker=self.cost_tracker,
            monitor=parts.monitor,
            logger=self.logger,
        )
        self._decider = ChunkDecider(engine, self.guard, self.progress, self.ranks.world_size)
        self.last: AppliedDecision | None = None

    def begin_step(self, batch_size: int, sizes: Sequence[int]) -> None:
        """Announce an optimizer step.

        Args:
            batch_size: Decided for it; at the end of an epoch there may be fewer samples.
            sizes: Samples of its micro-batches.
        """
        if batch_size != self.rate.chosen:
            self.rate.set_batch_size(batch_size)
        # Batches that were under way when the size changed belong to no chunk.
        at = self.progress
        self.watching = at.enabled and batch_size == at.batch_size
        if not self.watching:
            return
        if at.chunk_steps == 0:
            self._begin_chunk()
        elif self._resumed:
            self.guard.resume_chunk(touched=at.touched, step=at.steps)
        self._resumed = False
        if at.steps > self._measured_at:
            self._measured_at = next_measured(at.steps, self._measuring_rate or 0.0)
        # Where a step is divided anyway its noise is known for nothing.
        divided = len(sizes) > 1 and self._measuring_rate is not None
        self._asks = divided or at.steps == self._measured_at
        self.monitor.begin_step(sizes, measured=self._asks)

    def end_step(self, samples: int, place: Callable[[], Place]) -> None:
        """Count an optimizer step; after the last one of a chunk, decide.

        Args:
            samples: Of the step.
            place: Returns that behind the step; asked where something is decided.
        """
        at, cost, logger = self.progress, self.cost_tracker, self.logger
        at.steps += 1
        at.samples_seen += samples
        if cost.step_cost is not None:
            cost.step(samples)
        if logger.log is not None or logger.trackers:
            logger.reached(at, cost, place)
        if not self.watching:
            return
        self.watching = False
        at.asked += self._asks
        at.chunk_done += 1
        if self.guard.trial is not None:
            self._end_trial(samples, place())
        if at.chunk_done >= at.chunk_steps:
            self._end_chunk(place())

    def abandon_step(self) -> None:
        """Forget the step under way."""
        if self.watching:
            self.monitor.drop_step(self.progress.chunk_done)
            self.watching = False

    def report_validation(self, loss: float) -> None:
        """Take a validation loss into the next decision."""
        self.progress.val_loss = loss

    def disable(self, reason: str, place: Place) -> None:
        """Go back to the user's batch size and decide nothing any more."""
        at = self.progress
        if not at.enabled:
            return
        undone = self.guard.undone(at.chunk_began)
        if self.guard.end_trial(at.steps):  # without a step that could tell
            self.note("rollback", undone, place)
        at.enabled = False
        before, at.batch_size = at.batch_size, self.base_batch_size
        self.note("off", reason, place, before)

    def close(self, place: Place) -> None:
        """Note the end of the run and close the log; one that is opened later continues it."""
        self.logger.end(self.progress, self.cost_tracker.so_far, place)

    def note(self, event: Event, reason: str, place: Place, before: int | None = None) -> None:
        """Note in the log what is no decision; `before` is the batch size before it, if another."""
        at = self.progress
        counts = at.steps, at.samples_seen, self.cost_tracker.total
        sizes = at.batch_size if before is None else before, at.batch_size
        self.logger.note(event, reason, place, counts=counts, batch_sizes=sizes)

    def _begin_chunk(self) -> None:
        at = self.progress
        at.begin_chunk(self.config.cadence.chunk_steps(at.steps))
        self.cost_tracker.begin_chunk()
        self.guard.begin_chunk(touched=at.touched, rises=at.batch_size > at.before, step=at.steps)

    def _end_chunk(self, place: Place) -> None:
        measured = self.monitor.finish()  # waits for the device: the chunk's time is complete
        at = self.progress
        self.cost_tracker.end_chunk(at.batch_size, at.chunk_done)
        at.chunk_steps = at.chunk_done = 0
        at.noise_seen = at.noise_seen or math.isfinite(measured.noise_trace)
        rolled_back = self.guard.end_chunk(
            measured, at.batch_size, at.before, began=at.chunk_began, step=at.steps
        )
        signals = chunk_signals(
            at.constants(self.context),
            measured,
            batch_size=at.batch_size,
            total_steps=at.steps,
            total_samples=at.samples_seen,
            chunk_cost=self.cost_tracker.total - at.chunk_cost,
            total_cost=self.cost_tracker.total,
            val_loss=at.val_loss,
            learning_rate=self._learning_rate.current(),
            learning_rate_factor=self.rate.factor,
            step_cost_curve=self.cost_tracker.curve(),
            rolled_back=rolled_back,
        )
        at.chunk_cost, at.val_loss = self.cost_tracker.total, math.nan
        if self.guard.diverged:
            warnings.warn("rlbatch: the loss does not recover; switching off.", stacklevel=2)
            self.disable("the loss does not recover", place)
            return
        if not rolled_back:
            self.rate.observe(measured)
        self._decide(signals, at.before if rolled_back else at.batch_size, rolled_back, place)
        if rolled_back and self.guard.trial is None:
            self.guard.copied_at = at.steps  # the weights of now are the copy's

    def _end_trial(self, samples: int, place: Place) -> None:
        """Behind the first step with the weights from before a chunk whose loss rose."""
        at = self.progress
        losses = self.monitor.state_dict(at.chunk_done)["losses"]
        loss = float(self.ranks.mean(np.array(losses[:1]))[0])
        undone = self.guard.undone(at.chunk_began)
        if self.guard.end_trial(at.steps, loss, samples):
            self.note("rollback", undone, place)

    def _decide(self, signals: Signals, in_force: int, rolled_back: bool, place: Place) -> None:
        if not self.ranks.is_main:
            self._follow(in_force, place)
            return
        size, off_when = _OFF, self.config.off_when
        try:
            if off_when is not None and off_when():
                self.disable("off_when said so", place)
            else:
                decision = self._decider.decide(signals, in_force, rolled_back=rolled_back)
                self.progress.change(in_force, decision.batch_size, self.base_batch_size)
                self.last = decision
                undone = rolled_back and self.guard.trial is None
                self.logger.decision(
                    signals,
                    decision,
                    place,
                    event="rollback" if undone else decision.event,
                    learning_rate_factor=self.rate.set_batch_size(decision.batch_size),
                )
                size = decision.batch_size
        except Exception as error:
            if self.config.on_error == "raise":
                raise
            # Whatever is wrong with a policy or a disk, it must not end somebody's training.
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"rlbatch: switching off after {reason}", RuntimeWarning, stacklevel=2)
            if isinstance(error, EpisodeLogError):
                self.logger.give_up()
            self.disable(reason, place)
        finally:
            self.ranks.agree_on(size, self.guard.choose_copies())  # the others wait for it

    def _follow(self, in_force: int, place: Place) -> None:
        """Do what rank 0 has decided."""
        size, self.guard.copies_often = self.ranks.agree_on(_OFF, 0)
        if size == _OFF:
            self.disable("rank 0 has switched off", place)
            return
        self.progress.change(in_force, size, self.base_batch_size)
        self.rate.set_batch_size(size)

    def summary(self) -> dict[str, Any]:
        """Return what is going on, for people."""
        at = self.progress
        return {
            "enabled": at.enabled,
            "batch_size": at.batch_size,
            "learning_rate_factor": self.rate.factor,
            "steps": at.steps,
            "samples_seen": at.samples_seen,
            "chunk": (at.chunk_done, at.chunk_steps),
            "cost": self.cost_tracker.total,
            "rollbacks": self.guard.count,
            "reasons": () if self.last is None else self.last.reasons,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the coming decisions depend on."""
        return self._saved.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; later lines of the log are dropped.

        Raises:
            ConfigurationError: The state is damaged or of another run, or the ranks' states are of
                different steps. All is as before then, on every rank.
        """
        error: Exception | None = None
        with all_or_nothing(self):
            try:
                self._saved.load_state_dict(state)
            except Exception as wrong:
                error = wrong
            self.ranks.require_agreement(self.progress.steps, error)
            self.watching, self._resumed, self._measured_at = False, True, -1
            self.logger.drop_later()
