"""Writes the episode log of a controlled run."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from rlbatch.control.engine import AppliedDecision
from rlbatch.envs.live import LiveRun
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.log.decision_record import DecisionRecord, Event
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.signals.record import Signals


class RunLog:
    """One line a decision; a roll-back and the end of the run have lines of their own."""

    def __init__(
        self,
        folder: str | Path,
        run: LiveRun,
        seed: int,
        profile: DeviceProfile | None,
        run_info: dict[str, object],
    ) -> None:
        """Begin the log of a run that has not trained yet.

        Raises:
            EpisodeLogError: The folder already holds a log, or cannot be written.
        """
        context = {name: float(value) for name, value in vars(run.context).items()}
        info: dict[str, Any] = {
            "task": run.task.name,
            "seed": seed,
            "profile": "wall" if profile is None else asdict(profile),
            "objective": asdict(run.objective),
            "cadence": asdict(run.cadence),
            "context": context,
            "start_batch_size": run.batch_size,
            **run_info,
        }
        self._log = EpisodeLog(folder, info)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.close()

    def decision(self, run: LiveRun, signals: Signals, decision: AppliedDecision) -> None:
        """Write what was decided after a chunk, and before it the roll-back if there was one."""
        if float(signals.rolled_back) > 0:
            self._rollback(run, signals)
        self._write(
            run,
            "decision",
            effective_step=run.steps,
            batch_size_before=decision.batch_size_before,
            batch_size=decision.batch_size,
            requested_log2_change=decision.requested_log2_change,
            applied_log2_change=decision.applied_log2_change,
            learning_rate_factor=_rate_factor(signals, decision.batch_size),
            signals=_plain(signals),
            observation=decision.observation.tolist(),
            probabilities=decision.probabilities,
            value=decision.value,
            reasons=decision.reasons,
        )

    def _rollback(self, run: LiveRun, signals: Signals) -> None:
        trained_at = round(float(signals.batch_size))
        self._write(
            run,
            "rollback",
            batch_size_before=trained_at,
            batch_size=run.batch_size,
            effective_step=run.steps,
            applied_log2_change=math.log2(run.batch_size / trained_at),
            reasons=("guard: the chunk did damage and was undone",),
        )

    def off(self, run: LiveRun, signals: Signals) -> None:
        """Write the last roll-back, and that the run goes on at the task's batch size."""
        self._rollback(run, signals)
        self._write(
            run,
            "off",
            effective_step=run.steps,
            batch_size_before=run.batch_size,
            batch_size=run.task.batch_size,
            reasons=("guard: the loss does not recover",),
        )

    def end(self, run: LiveRun, signals: Signals) -> None:
        """Write how the run ended."""
        if run.reached:
            how = f"target {run.objective.target_loss:g} reached"
        elif run.diverged:
            how = "diverged"
        else:
            how = "budget spent" if run.objective.kind == "budget" else "target not reached"
        self._write(
            run,
            "end",
            effective_step=None,
            batch_size_before=run.batch_size,
            batch_size=run.batch_size,
            learning_rate_factor=float(signals.learning_rate_factor),
            signals=_plain(signals),
            reasons=(how,),
        )

    def _write(self, run: LiveRun, event: Event, **values: Any) -> None:
        record = DecisionRecord(
            index=self._log.position,
            event=event,
            step=run.steps,
            epoch=run.samples_seen / float(run.context.dataset_size),
            samples_seen=run.samples_seen,
            cost=run.cost,
            **values,
        )
        self._log.write(record)


def _rate_factor(signals: Signals, batch_size: int) -> float:
    """Return the coupling's factor at a batch size; AdaScale's is measured only as it comes up."""
    context = signals.context
    if float(context.adascale) > 0:
        return float(signals.learning_rate_factor)
    ratio = batch_size / float(context.base_batch_size)
    return ratio ** float(context.coupling_exponent)


def _plain(signals: Signals) -> dict[str, Any]:
    """Return the signals without the run's constants, which `run.json` holds."""
    return {
        field.name: np.asarray(getattr(signals, field.name), dtype=np.float64).tolist()
        for field in fields(signals)
        if field.name != "context"
    }
