"""The parts of the check, in the order in which they matter, and the seconds of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from rlbatch.agents.gpu.report import PartSettings, Report
from rlbatch.errors import UnknownNameError


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: On the command line, and of its file.
        module: Whose `run(settings, report)` it is.
        seconds: That it may take at most in a check of nine minutes; the last takes what is left.
    """

    name: str
    module: str
    seconds: float

    def load(self) -> Callable[[PartSettings, Report], None]:
        """Return what runs it."""
        return importlib.import_module(f"rlbatch.agents.gpu.{self.module}").run


PARTS = (
    Part("tests", "suite", 90.0),
    Part("waiting", "waiting", 40.0),
    Part("overhead", "step_overhead", 90.0),
    Part("profiles", "step_curves", 75.0),
    Part("features", "features", 80.0),
    Part("language-model", "language_runs", 165.0),
)


def part_named(name: str) -> Part:
    """Return a part.

    Raises:
        UnknownNameError: There is none of that name.
    """
    for part in PARTS:
        if part.name == name:
            return part
    raise UnknownNameError("part", name, [part.name for part in PARTS])


def seconds_of(part: Part, left: float, share: float) -> float:
    """Return what a part may take.

    Args:
        part: Of `PARTS`.
        left: Seconds left for all.
        share: Length of the whole check over nine minutes.
    """
    if part is PARTS[-1]:
        return left
    return min(part.seconds * share, left)
