"""The time that a training has, over all of its beginnings, and how it is divided."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rlbatch.agents.own_tasks.notes import read_note, write_note

_TIME_FILE, _DIVISION_FILE = "time.json", "division.json"

CURVES_SHARE = 0.3
"""Of all time; the first seed of the fixed runs is made whatever it takes."""

SCHEDULES_SHARE = 0.65
"""Of the time for schedules and networks."""

RULES_SHARE = 0.1
"""Of the time that is left, for more rules than one: no file is made of them."""

FIRST_ROUNDS, MOST_ROUNDS = 2, 8
"""Of the validation of every candidate, and of the few best ones in the end; a round is a run from
each start."""

SHORTLIST, RACING = 5, 3
"""Candidates that the choice begins with, and those that most of its rounds are for in the mean."""

MOST_SEGMENTS = 6
"""Parts of learning."""

_LEARNING_SHARE = 0.85  # of a segment's time, at most; the rest is for the comparison after it
_RESERVED_SHARE = 0.6  # for choosing and testing, at most, of what the first comparison leaves
_NOTED_EVERY = 5.0  # seconds
_FEWEST_TESTS = 2  # seeds: with one there is no interval


class Budget:
    """Seconds that are left, counted over stops and resumptions."""

    def __init__(self, out: Path, minutes: float) -> None:
        """Go on with what the folder's training has spent."""
        self._path, self._total = out / _TIME_FILE, 60.0 * minutes
        self._before = read_note(self._path, lambda noted: float(noted["seconds"])) or 0.0
        self._begun = self._noted = time.monotonic()

    @property
    def total(self) -> float:
        """All of it."""
        return self._total

    @property
    def spent(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Not less than 0."""
        return max(self._total - self.spent, 0.0)

    def note(self) -> None:
        """Note what is spent, on the disk if that has room: without the note time is all lost."""
        self._noted = time.monotonic()
        with suppress(OSError):
            write_note(self._path, {"seconds": self.spent})

    def note_at_times(self) -> None:
        """Note it every few seconds: a killed process cannot."""
        if time.monotonic() - self._noted > _NOTED_EVERY:
            self.note()


@dataclass(frozen=True)
class Pace:
    """How long comparisons take, and how much else fits.

    Attributes:
        comparison: Seconds of the first comparison of a candidate.
    """

    comparison: float

    def segments(self, seconds: float) -> int:
        """Return in how many parts to learn: a comparison takes at most a third of each."""
        if self.comparison <= 0.0:
            return MOST_SEGMENTS
        return min(MOST_SEGMENTS, int(max(seconds, 0.0) / (3.0 * self.comparison)))

    def learning(self, seconds: float) -> float:
        """Return what of the seconds of a segment is for learning."""
        return min(_LEARNING_SHARE * seconds, seconds - self.comparison)

    def searching(self, seconds: float) -> float:
        """Return what of some seconds is for schedules: all, if too little were left to learn."""
        fits = self.segments((1.0 - SCHEDULES_SHARE) * seconds) > 0
        return SCHEDULES_SHARE * seconds if fits else seconds


@dataclass(frozen=True)
class Division:
    """What is done with the time after the first validation.

    Attributes:
        validation_rounds: Of the few best candidates.
        test_seeds: Of the evaluation.
        reserved: Seconds that both take.
        test_seconds: Those of the evaluation.
    """

    validation_rounds: int
    test_seeds: int
    reserved: float
    test_seconds: float

    def save(self, out: Path) -> None:
        """Note it, so that a training that goes on has the same test."""
        write_note(out / _DIVISION_FILE, asdict(self))


def load_division(out: Path) -> Division | None:
    """Return what a folder's training has noted; None if it has not come so far."""
    return read_note(out / _DIVISION_FILE, lambda noted: Division(**noted))


def divide(
    left: float, run_seconds: float, *, tasks: int, starts: int, seeds: int, sizes: int
) -> Division:
    """Return how many seeds the time allows.

    Args:
        left: Seconds.
        run_seconds: Of one run, divided by the runs side by side.
        tasks: Their number.
        starts: First sizes of each.
        seeds: Most seeds of the evaluation.
        sizes: Fixed sizes that each seed's reference takes, of all tasks.
    """

    def seconds(validated: int, tested: int) -> float:
        more = max(validated - FIRST_ROUNDS, 0) * RACING * tasks * starts
        return run_seconds * (more + tested * (sizes + SHORTLIST * tasks * starts))

    choices = [
        (validated, tested)
        for validated in range(MOST_ROUNDS, FIRST_ROUNDS - 1, -1)
        for tested in range(seeds, min(seeds, _FEWEST_TESTS) - 1, -1)
    ]
    choices.sort(key=lambda choice: -(choice[0] / MOST_ROUNDS + choice[1] / seeds))
    fitting = [choice for choice in choices if seconds(*choice) <= _RESERVED_SHARE * left]
    validated, tested = (fitting or choices[-1:])[0]
    test_seconds = seconds(FIRST_ROUNDS, tested)
    return Division(validated, tested, seconds(validated, tested), test_seconds)
