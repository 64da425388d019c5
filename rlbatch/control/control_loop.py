"""Watches the steps of one training, decides after each chunk, undoes damage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlbatch.control.config import ControllerConfig
from rlbatch.control.cost_tracker import CostTracker
from rlbatch.control.coupled_rate import CoupledRate
from rlbatch.control.decision_logger import DecisionLogger, Place
from rlbatch.control.engine import AppliedDecision, DecisionEngine, shareable, unmeasured
from rlbatch.control.ranks import Ranks
from rlbatch.control.rollback import Rollback
from rlbatch.control.saved_state import all_or_nothing, require_agreement, require_like
from rlbatch.control.training_parts import TrainingParts
from rlbatch.errors import ConfigurationError, EpisodeLogError
from rlbatch.log.decision_record import Event
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.signals.assemble import chunk_signals
from rlbatch.signals.cadence import NOISE_RATE, is_measured
from rlbatch.signals.record import Coupling, RunContext, Signals

_OFF = 0  # agreed on instead of a batch size
_TRIED = "the loss rose: the weights after step {} are tried for a step"

# What a checkpoint holds of a control_loop as it is.
_PLAIN = (
    *("batch_size", "enabled", "steps", "samples_seen"),
    *("_before", "_touched", "_chunk_done", "_chunk_steps", "_chunk_cost", "_chunk_began"),
    *("_val_loss", "_asked", "_noise_seen"),
)


class ControlLoop:
    """Turns the steps of a run into chunks, and chunks into decisions.

    For each optimizer step call `begin_step`, and `end_step` after the optimizer has stepped with
    its learning rate times `rate.factor`. In between, while `watching`, the training's monitor is
    told of each micro-batch.

    Attributes:
        watching: The step under way belongs to a chunk.
        batch_size: Decided last: in force once it is delivered.
        context: The run's constants.
        config: The settings.
        enabled: False once it only watches the user's own batch size go by.
        rate: The coupled learning rate.
        cost_tracker: The cost.
        steps: Optimizer steps so far.
        samples_seen: Samples so far.
        guard: Undoes chunks that did damage.
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
        self.config, self.context, self._engine = config, context, engine
        self._logger, self._log_position = DecisionLogger(), 0
        self._learning_rate, self._monitor = parts.rate, parts.monitor
        self.base_batch_size = round(float(context.base_batch_size))
        coupling = Coupling(config.lr_coupling)
        self.rate = CoupledRate(parts.rate, coupling, self.base_batch_size)
        self.cost_tracker = CostTracker(config)
        self._measures = engine.noise_rate > 0.0 or coupling is Coupling.ADASCALE
        rate = engine.noise_rate or NOISE_RATE if config.noise_rate is None else config.noise_rate
        self._noise_rate = rate if self._measures else 0.0
        self.guard = Rollback(parts.weights, config.guard, self.ranks)
        self.batch_size = self._before = self.base_batch_size
        self.enabled, self._touched = True, False
        self.steps = self.samples_seen = 0
        self._chunk_done = self._chunk_steps = 0
        self._chunk_cost, self._chunk_began = 0.0, 0
        self.watching = self._resumed = False
        self._val_loss = math.nan
        self._asked, self._asks, self._noise_seen = 0, False, False  # to be measured; one was
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
        self.watching = self.enabled and batch_size == self.batch_size
        if not self.watching:
            return
        if self._chunk_steps == 0:
            self._begin_chunk()
        elif self._resumed:
            self.guard.resume_chunk(touched=self._touched, step=self.steps)
        self._resumed = False
        # Where a step is divided anyway its noise is known for nothing.
        measured = len(sizes) > 1 or is_measured(self.steps, self._noise_rate)
        self._asks = self._measures and measured
        self._monitor.begin_step(sizes, measured=self._asks)

    def end_step(self, samples: int, place: Callable[[], Place]) -> None:
        """Count an optimizer step; after the last one of a chunk, decide.

        Args:
            samples: Of the step.
            place: Returns that behind the step; asked where something is decided.
        """
        self.steps += 1
        self.samples_seen += samples
        self.cost_tracker.step(samples)
        self._logger.reached((self.steps, self.samples_seen), self.cost_tracker.so_far, place)
        if not self.watching:
            return
        self.watching = False
        self._asked += self._asks
        self._chunk_done += 1
        if self.guard.trial is not None:
            self._end_trial(samples, place())
        if self._chunk_done >= self._chunk_steps:
            self._end_chunk(place())

    def abandon_step(self) -> None:
        """Forget the step under way."""
        if self.watching:
            self._monitor.drop_step(self._chunk_done)
            self.watching = False

    def report_validation(self, loss: float) -> None:
        """Take a validation loss into the next decision."""
        self._val_loss = loss

    def disable(self, reason: str, place: Place) -> None:
        """Go back to the user's batch size and decide nothing any more."""
        if not self.enabled:
            return
        undone = self.guard.undone(self._chunk_began)
        if self.guard.end_trial(self.steps):  # without a step that could tell
            self._note("rollback", undone, place, self.batch_size)
        self.enabled = False
        before, self.batch_size = self.batch_size, self.base_batch_size
        self._note("off", reason, place, before)

    def note_memory(self, reason: str, place: Place) -> None:
        """Note in the log that a pass ran out of memory."""
        self._note("out_of_memory", reason, place, self.batch_size)

    def open_log(self, log: EpisodeLog) -> None:
        """Write to this log from now on, behind the lines that a loaded state knows of."""
        self._logger.open(log, self._log_position, self.batch_size)

    def track(self, run: dict[str, Any]) -> None:
        """Tell the trackers of the settings, on rank 0; `run` is what `run.json` says."""
        if self.ranks.is_main:
            self._logger.track(self.config.trackers, run)

    def close(self, place: Place) -> None:
        """Note the end of the run and close the log; one that is opened later continues it."""
        counts = self.steps, self.samples_seen
        cost = self.cost_tracker.so_far
        self._log_position = self._logger.end(counts, cost, place, self.batch_size)

    def _note(self, event: Event, reason: str, place: Place, before: int) -> None:
        counts = self.steps, self.samples_seen, self.cost_tracker.total
        sizes = before, self.batch_size
        self._logger.note(event, reason, place, counts=counts, batch_sizes=sizes)

    def _begin_chunk(self) -> None:
        self._chunk_steps = self.config.cadence.chunk_steps(self.steps)
        self._chunk_done = 0
        self.cost_tracker.begin_chunk()
        self._chunk_began = self.steps
        rises = self.batch_size > self._before
        self.guard.begin_chunk(touched=self._touched, rises=rises, step=self.steps)

    def _end_chunk(self, place: Place) -> None:
        measured = self._monitor.finish()  # waits for the device: the chunk's time is complete
        self.cost_tracker.end_chunk(self.batch_size, self._chunk_done)
        self._chunk_steps = self._chunk_done = 0
        self._noise_seen = self._noise_seen or math.isfinite(measured.noise_trace)
        rolled_back = self.guard.end_chunk(
            measured, self.batch_size, self._before, began=self._chunk_began, step=self.steps
        )
        signals = chunk_signals(
            self.context,
            measured,
            batch_size=self.batch_size,
            total_steps=self.steps,
            total_samples=self.samples_seen,
            chunk_cost=self.cost_tracker.total - self._chunk_cost,
            total_cost=self.cost_tracker.total,
            val_loss=self._val_loss,
            learning_rate=self._learning_rate.current(),
            learning_rate_factor=self.rate.factor,
            step_cost_curve=self.cost_tracker.curve(),
            rolled_back=rolled_back,
        )
        self._chunk_cost = self.cost_tracker.total
        in_force = self._before if rolled_back else self.batch_size
        self._val_loss = math.nan
        if self.guard.diverged:
            warnings.warn("rlbatch: the loss does not recover; switching off.", stacklevel=2)
            self.disable("the loss does not recover", place)
            return
        if not rolled_back:
            self.rate.observe(measured)
        self._decide(signals, in_force, rolled_back, place)
        if rolled_back and self.guard.trial is None:
            self.guard.copied_at = self.steps  # the weights of now are the copy's

    def _end_trial(self, samples: int, place: Place) -> None:
        """Behind the first step with the weights from before a chunk whose loss rose."""
        losses = self._monitor.state_dict(self._chunk_done)["losses"]
        loss = float(self.ranks.mean(np.array(losses[:1]))[0])
        undone = self.guard.undone(self._chunk_began)
        if self.guard.end_trial(self.steps, loss, samples):
            self._note("rollback", undone, place, self.batch_size)

    def _decide(self, signals: Signals, in_force: int, rolled_back: bool, place: Place) -> None:
        if not self.ranks.is_main:
            self._follow(in_force, place)
            return
        size, off_when = _OFF, self.config.off_when
        try:
            if off_when is not None and off_when():
                self.disable("off_when said so", place)
            else:
                decision = self._decision(signals, in_force, rolled_back)
                self._change(in_force, decision.batch_size)
                self.last = decision
                undone = rolled_back and self.guard.trial is None
                self._logger.decision(
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
                self._logger.give_up()
            self.disable(reason, place)
        finally:
            self.ranks.agree_on(size, self.guard.choose_copies())  # the others wait for it

    def _decision(self, signals: Signals, in_force: int, rolled_back: bool) -> AppliedDecision:
        """Return the decision after a chunk, with what is to be said of the chunk."""
        decision = shareable(
            self._engine.decide(signals, in_force), self.context, self.ranks.world_size
        )
        if not self._noise_seen and (said := unmeasured(self._asked)):
            self._noise_seen = True  # or said, which is as good
            decision = replace(decision, reasons=(*decision.reasons, said))
        if not rolled_back:
            return decision
        if self.guard.trial is None:
            said = self.guard.undone(self._chunk_began)
        else:
            said = _TRIED.format(self.guard.copied_at)
        decision = replace(decision, reasons=(*decision.reasons, said))
        return decision.held() if self.guard.suspects else decision

    def _follow(self, in_force: int, place: Place) -> None:
        """Do what rank 0 has decided."""
        size, self.guard.copies_often = self.ranks.agree_on(_OFF, 0)
        if size == _OFF:
            self.disable("rank 0 has switched off", place)
            return
        self._change(in_force, size)
        self.rate.set_batch_size(size)

    def _change(self, in_force: int, size: int) -> None:
        self._before, self.batch_size = in_force, size
        self._touched = self._touched or size != self.base_batch_size

    def summary(self) -> dict[str, Any]:
        """Return what is going on, for people."""
        return {
            "enabled": self.enabled,
            "batch_size": self.batch_size,
            "learning_rate_factor": self.rate.factor,
            "steps": self.steps,
            "samples_seen": self.samples_seen,
            "chunk": (self._chunk_done, self._chunk_steps),
            "cost": self.cost_tracker.total,
            "rollbacks": self.guard.count,
            "reasons": () if self.last is None else self.last.reasons,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the coming decisions depend on.

        Within a chunk that the guard may undo, that is the weights before it, too.
        """
        return {
            "plain": {name: getattr(self, name) for name in _PLAIN},
            "guard": self.guard.state_dict(within_chunk=self._chunk_steps > 0),
            "engine": self._engine.state_dict(),
            "rate": self.rate.state_dict(),
            "cost_tracker": self.cost_tracker.state_dict(),
            "monitor": self._monitor.state_dict(self._chunk_done),
            "log_position": self._logger.position or self._log_position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; later lines of the log are dropped.

        Raises:
            ConfigurationError: The state is damaged or of another run, or the ranks' states are of
                different steps. All is as before then, on every rank.
        """
        with all_or_nothing(self):
            error = self._taken(state)
            # The others wait for this, whatever is wrong here.
            latest, earliest, refused = self.ranks.largest(self.steps, -self.steps, bool(error))
            if error is not None:
                raise error
            require_agreement(latest, -earliest, refused=bool(refused))
            self._logger.go_back(self._log_position, self.batch_size)

    def _taken(self, state: dict[str, Any]) -> Exception | None:
        """Take a state and return what is wrong with it, if anything is."""
        try:
            # Engine and monitor look at theirs themselves: it depends on policy and ranks.
            own = {**self.state_dict(), "engine": None, "monitor": None}
            require_like(state, own, "the state of the run")
            self._take(state)
        except Exception as error:
            return error
        return None

    def _take(self, state: dict[str, Any]) -> None:
        for name in _PLAIN:
            setattr(self, name, state["plain"][name])
        if min(self.batch_size, self._before) < 1 or self._chunk_done > self._chunk_steps:
            raise ConfigurationError(
                f"The state tells of a batch size of {min(self.batch_size, self._before)} and of "
                f"{self._chunk_done} of {self._chunk_steps} steps. Resume from another checkpoint."
            )
        self.guard.load_state_dict(state["guard"])
        self._engine.load_state_dict(state["engine"])
        self.rate.load_state_dict(state["rate"])
        self.cost_tracker.load_state_dict(state["cost_tracker"])
        self._monitor.load_state_dict(state["monitor"])
        self.watching, self._resumed = False, True
        self._log_position = state["log_position"]
