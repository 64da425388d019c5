"""Writes the episode log of a controlled run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlbatch.control.decision_logger import DecisionLogger, Place, context_values
from rlbatch.control.engine import AppliedDecision
from rlbatch.envs.live import LiveRun
from rlbatch.log.decision_record import Event
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.signals.record import Signals


class RunLog:
    """One line a decision; a roll-back and the end of the run have lines of their own."""

    def __init__(self, folder: str | Path, run: LiveRun, run_info: dict[str, object]) -> None:
        """Begin the log of a run that has not trained yet.

        Raises:
            EpisodeLogError: The folder already holds a log, or cannot be written.
        """
        profile = run.conditions.profile
        info: dict[str, Any] = {
            "task": run.task.name,
            "seed": run.conditions.seed,
            "profile": "wall" if profile is None else asdict(profile),
            "objective": asdict(run.objective),
            "cadence": asdict(run.cadence),
            "context": context_values(run.context),
            "start_batch_size": run.batch_size,
            **run_info,
        }
        self._run = run
        self._logger = DecisionLogger()
        self._logger.open(EpisodeLog(folder, info))

    def close(self) -> None:
        """Close the log."""
        self._logger.close()

    def decision(self, signals: Signals, decision: AppliedDecision) -> None:
        """Write what was decided after a chunk, and before it the roll-back if there was one."""
        if float(signals.rolled_back) > 0:
            self._rollback(signals)
        self._logger.decision(
            signals,
            decision,
            self._place,
            event=decision.event,
            learning_rate_factor=_rate_factor(signals, decision.batch_size),
        )

    def off(self, signals: Signals) -> None:
        """Write the last roll-back, and that the run goes on at the task's batch size."""
        self._rollback(signals)
        sizes = self._run.batch_size, self._run.task.batch_size
        self._note("off", "guard: the loss does not recover", sizes)

    def end(self, signals: Signals) -> None:
        """Write how the run ended."""
        run = self._run
        if run.reached:
            how = f"target {run.objective.target_loss:g} reached"
        elif run.diverged:
            how = "diverged"
        else:
            how = "budget spent" if run.objective.kind == "budget" else "target not reached"
        sizes = run.batch_size, run.batch_size
        factor = float(signals.learning_rate_factor)
        self._note("end", how, sizes, signals=signals, learning_rate_factor=factor)

    def _rollback(self, signals: Signals) -> None:
        sizes = round(float(signals.batch_size)), self._run.batch_size
        self._note("rollback", "guard: the chunk did damage and was undone", sizes)

    @property
    def _place(self) -> Place:
        run = self._run
        return Place(run.samples_seen / float(run.context.dataset_size), run.steps)

    def _note(self, event: Event, reason: str, sizes: tuple[int, int], **more: Any) -> None:
        counts = self._run.steps, self._run.samples_seen, self._run.cost
        self._logger.note(event, reason, self._place, counts=counts, batch_sizes=sizes, **more)


def _rate_factor(signals: Signals, batch_size: int) -> float:
    """Return the coupling's factor at a batch size; AdaScale's is measured only as it comes up."""
    context = signals.context
    if float(context.adascale) > 0:
        return float(signals.learning_rate_factor)
    ratio = batch_size / float(context.base_batch_size)
    return ratio ** float(context.coupling_exponent)
