"""The last line of a log, also where nobody closes the controller."""

from __future__ import annotations

import os
import warnings
import weakref
from dataclasses import dataclass

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import EpisodeLog

CLOSED = "end of the run"
DROPPED = "end of the run, without controller.close()"


@dataclass(frozen=True)
class Reached:
    """How far a run is after an optimizer step.

    Attributes:
        steps: Optimizer steps.
        samples: That went into them.
        cost: In the objective's unit.
        epoch: Epochs done, as a fraction.
    """

    steps: int
    samples: int
    cost: float
    epoch: float

    def record(self, index: int, batch_size: int, reason: str) -> DecisionRecord:
        """Return the line that says that the run has ended here."""
        return DecisionRecord(
            index=index,
            event="end",
            step=self.steps,
            effective_step=None,
            epoch=self.epoch,
            samples_seen=self.samples,
            cost=self.cost,
            batch_size_before=batch_size,
            batch_size=batch_size,
            reasons=(reason,),
        )


class UnclosedEnd:
    """Ends a log whose controller is dropped, or whose process ends, without `close`.

    It holds the log and numbers, and nothing of the training: model and controller can be collected
    as ever. Nothing is written by a forked process, which has a copy of it, nor where the process
    is killed. Trackers are not told: they may have ended their run by then.

    Attributes:
        reached: How far the run is; None before the first step, or behind a loaded state.
        batch_size: In force, in samples.
    """

    def __init__(self, owner: object, log: EpisodeLog) -> None:
        """Wait for the end of the owner, or of the process."""
        self.reached: Reached | None = None
        self.batch_size = 0
        self._log, self._process = log, os.getpid()
        self._finalizer = weakref.finalize(owner, self._write)

    def cancel(self) -> None:
        """Write nothing: the log is closed, or is going to be."""
        self._finalizer.detach()

    def _write(self) -> None:
        log = self._log
        if os.getpid() != self._process or not log.is_open:
            return
        try:
            if self.reached is not None:
                log.write(self.reached.record(log.position, self.batch_size, DROPPED))
            log.close()
        except EpisodeLogError as error:
            warnings.warn(f"rlbatch: the log has no end: {error}", RuntimeWarning, stacklevel=2)
