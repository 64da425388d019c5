"""What a training on one's own tasks shows while it runs, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlbatch.agents.own_tasks.evaluation import Score
from rlbatch.agents.own_tasks.validation import Candidate


class Display(Protocol):
    """Shows how far a training is."""

    def __call__(self, what: str, done: float, total: float, left: float) -> None:
        """Show a stage, how much of it is done, and the seconds that are left of everything."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        policy: The policy file.
        kept: What it holds.
        scores: Of the evaluation.
        seeds: Of the evaluation.
        better_rule: A rule that cannot be written as a policy file and was better than what is
            kept on the validation seeds; None if there is none.
    """

    policy: Path
    kept: Candidate
    scores: list[Score]
    seeds: int
    better_rule: str | None
