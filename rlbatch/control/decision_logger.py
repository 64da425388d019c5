"""Writes what a controller decides into the episode log."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rlbatch.control.cost_tracker import CostTracker
from rlbatch.control.engine import AppliedDecision
from rlbatch.control.loop_progress import LoopProgress
from rlbatch.control.run_end import CLOSED, Reached, UnclosedEnd
from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord, Event
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.signals.record import RunContext, Signals
from rlbatch.tracking import RecordValues, Tracker


def signal_values(signals: Signals) -> dict[str, Any]:
    """Return a chunk's measurements by name; the run's constants stand in `run.json`."""
    values = {field.name: getattr(signals, field.name) for field in fields(Signals)}
    del values["context"]
    return values


def context_values(context: RunContext) -> dict[str, float]:
    """Return the run's constants by name."""
    return {field.name: float(getattr(context, field.name)) for field in fields(RunContext)}


@dataclass(frozen=True)
class Place:
    """Where in the run something happens.

    Attributes:
        epoch: Epochs done, as a fraction.
        next_step: Number of the optimizer step at which a change of the batch size takes effect.
    """

    epoch: float
    next_step: int


class DecisionLogger:
    """The log of one run, or nothing where none is wanted.

    Attributes:
        log: Where lines go; None drops them.
        trackers: Are told too.
    """

    def __init__(self) -> None:
        """Write nowhere before `open`."""
        self.log: EpisodeLog | None = None
        self._known = 0  # lines, while no log is open
        self._reached: Reached | None = None
        self._unclosed: UnclosedEnd | None = None
        self.trackers: list[Tracker] = []
        self._values = RecordValues({})

    @property
    def position(self) -> int:
        """Lines so far."""
        return 0 if self.log is None else self.log.position

    @property
    def known(self) -> int:
        """Lines that the run's state knows of, whether a log is open or not."""
        return self.position or self._known

    @known.setter
    def known(self, lines: int) -> None:
        self._known = lines

    def open(self, log: EpisodeLog) -> None:
        """Write to this log from now on, after the lines that the state knows of."""
        log.truncate_to(self._known)
        self.log, self._reached = log, None
        self._unclosed = UnclosedEnd(self, log)

    def drop_later(self) -> None:
        """Drop the lines that a loaded state does not know of."""
        self._reached = None
        if self.log is not None:
            self.log.truncate_to(self._known)
        if self._unclosed is not None:
            self._unclosed.reached = None

    def reached(self, at: LoopProgress, cost: CostTracker, place: Callable[[], Place]) -> None:
        """Take note of an optimizer step, for the line that ends the run: where there is a log.

        Args:
            at: How far the run is.
            cost: Knows what it has cost.
            place: Returns where that is.
        """
        self._reached = Reached(at.steps, at.samples_seen, cost.so_far, place().epoch)
        if self._unclosed is not None:
            self._unclosed.reached, self._unclosed.batch_size = self._reached, at.batch_size

    def track(self, trackers: Sequence[Tracker], run: Mapping[str, Any]) -> None:
        """Tell these trackers, too, from now on.

        Args:
            trackers: Where values go.
            run: What `run.json` says of the run.
        """
        self.trackers, self._values = list(trackers), RecordValues(run)
        for tracker in trackers:
            self._tell(tracker, lambda tracker=tracker: tracker.begin(run))

    def decision(
        self,
        signals: Signals,
        decision: AppliedDecision,
        place: Place,
        *,
        event: Event,
        learning_rate_factor: float,
    ) -> None:
        """Write one decision.

        Args:
            signals: Of the chunk that ended.
            decision: What was decided and applied.
            place: Where.
            event: `decision`, `fallback` where the policy was not trusted, or `rollback` where the
                chunk was undone before.
            learning_rate_factor: The coupling's factor at the new batch size.
        """
        if self.log is None and not self.trackers:
            return
        self._write(
            DecisionRecord(
                index=self.position,
                event=event,
                step=int(float(signals.total_steps)),
                effective_step=place.next_step,
                epoch=place.epoch,
                samples_seen=int(float(signals.total_samples)),
                cost=float(signals.total_cost),
                batch_size_before=decision.batch_size_before,
                batch_size=decision.batch_size,
                requested_log2_change=decision.requested_log2_change,
                applied_log2_change=decision.applied_log2_change,
                learning_rate_factor=learning_rate_factor,
                signals=signal_values(signals),
                observation=decision.observation.tolist(),
                probabilities=decision.probabilities,
                value=decision.value,
                reasons=decision.reasons,
            )
        )

    def note(
        self,
        event: Event,
        reason: str,
        place: Place,
        *,
        counts: tuple[int, int, float],
        batch_sizes: tuple[int, int],
        signals: Signals | None = None,
        learning_rate_factor: float = 1.0,
    ) -> None:
        """Write that something happened which is no decision.

        Args:
            event: What happened.
            reason: Why, in words.
            place: Where.
            counts: Optimizer steps, samples and cost so far.
            batch_sizes: Before and after.
            signals: Of the chunk that ended with it, if they are to be kept.
            learning_rate_factor: The coupling's at the batch size after.
        """
        if self.log is None and not self.trackers:
            return
        (steps, samples, cost), (before, after) = counts, batch_sizes
        self._write(
            DecisionRecord(
                index=self.position,
                event=event,
                batch_size_before=before,
                batch_size=after,
                applied_log2_change=math.log2(after / before) if event == "rollback" else 0.0,
                learning_rate_factor=learning_rate_factor,
                signals={} if signals is None else signal_values(signals),
                reasons=(reason,),
                step=steps,
                effective_step=None if event == "end" else place.next_step,
                epoch=place.epoch,
                samples_seen=samples,
                cost=cost,
            )
        )

    def end(self, at: LoopProgress, cost: float, place: Place) -> None:
        """Write that the run is over and close the log.

        Args:
            at: How far the run is.
            cost: So far, where no step of this process says it.
            place: Where.
        """
        if self.log is not None and not self.log.is_open:
            self.log = None  # another controller of this process goes on with it
        if self.log is not None or self.trackers:
            reached = self._reached or Reached(at.steps, at.samples_seen, cost, place.epoch)
            self._write(reached.record(self.position, at.batch_size, CLOSED))
        self.close()

    def _write(self, record: DecisionRecord) -> None:
        if self.log is not None:
            self.log.write(record)
        if self._unclosed is not None:
            self._unclosed.batch_size = record.batch_size
        values, texts = self._values.of(record)
        for tracker in tuple(self.trackers):
            self._tell(
                tracker,
                lambda tracker=tracker: tracker.log(record.samples_seen, values, texts),
            )

    def _tell(self, tracker: Tracker, call: Callable[[], None]) -> None:
        """Call a tracker; one that fails is dropped: a training must not end by it."""
        try:
            call()
        except Exception as error:
            self.trackers.remove(tracker)
            what = f"{type(tracker).__name__} gets no more of this run"
            warnings.warn(
                f"rlbatch: {what}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2
            )

    def give_up(self) -> None:
        """Drop a log that cannot be written, and keep quiet about it from now on."""
        with contextlib.suppress(EpisodeLogError):
            self.close()

    def close(self) -> None:
        """Flush and close; a log that is opened later goes on after the lines so far."""
        self._known = self.position
        unclosed, self._unclosed = self._unclosed, None
        if unclosed is not None:
            unclosed.cancel()
        log, self.log = self.log, None
        if log is not None:
            log.close()
