"""A double of a run: plays the signals of a recorded episode instead of training."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch import observation
from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.signals.record import RunContext, Signals


class ReplayRun:
    """Yields the recorded signals, one chunk after the other, whatever is decided.

    Attributes:
        context: The recorded run's constants.
        decisions: The recorded decisions, in order.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read an episode log.

        Raises:
            EpisodeLogError: The folder holds no log, or one without signals.
        """
        episode = read_episode(folder)
        try:
            self.context = RunContext(**episode.run["context"])
        except (KeyError, TypeError) as error:
            raise EpisodeLogError(
                f"{folder} cannot be replayed: its run.json has no full context ({error})."
            ) from error
        self.decisions: tuple[DecisionRecord, ...] = tuple(
            record for record in episode.records if record.event in ("decision", "fallback")
        )
        self._position = 0

    @property
    def finished(self) -> bool:
        """Whether every chunk was played."""
        return self._position >= len(self.decisions)

    def advance(self) -> Signals:
        """Return the next chunk's signals.

        Raises:
            EpisodeLogError: There are no more, or the record has no signals.
        """
        if self.finished:
            raise EpisodeLogError("The recorded episode is over. Look at `finished` first.")
        record = self.decisions[self._position]
        self._position += 1
        values: dict[str, Any] = dict(record.signals or {})
        names = {field.name for field in fields(Signals)} - {"context"}
        if set(values) != names:
            raise EpisodeLogError(
                f"Decision {record.index} cannot be replayed: it lacks "
                f"{', '.join(sorted(names - set(values))) or 'nothing'}."
            )
        values["step_cost_curve"] = np.asarray(values["step_cost_curve"], dtype=np.float64)
        return Signals(context=self.context, **values)


def replay(folder: str | Path, policy: Policy) -> list[tuple[Observation, Decision]]:
    """Return what a policy sees and decides on a recorded episode (its decisions have no effect).

    Raises:
        EpisodeLogError: The log cannot be replayed.
    """
    run, state, seen = ReplayRun(folder), policy.initial_state(), observation.initial_state()
    made: list[tuple[Observation, Decision]] = []
    while not run.finished:
        signals = run.advance()
        vector, seen = observation.encode(signals, seen)
        decision, state = policy.decide(vector, signals, state)
        made.append((vector, decision))
    return made
