"""How far a training is, and how long it will take, from what its present stage took so far."""

from __future__ import annotations

import math
import time

from rlbatch.agents.own_tasks.budget import Budget
from rlbatch.agents.own_tasks.outcome import Display


class Stages:
    """Shows the stages of a training one after the other.

    Attributes:
        budget: The training's time.
    """

    def __init__(self, budget: Budget, display: Display) -> None:
        """Show nothing yet."""
        self.budget, self._display = budget, display
        self._stage, self._begun = "", time.monotonic()

    def show(
        self,
        what: str,
        done: float,
        total: float,
        *,
        sure: float = math.inf,
        expected: float = 0.0,
        after: float = 0.0,
    ) -> None:
        """Show how much of a stage is done.

        Args:
            what: The stage.
            done: In any unit.
            total: All of it.
            sure: What of it is done however long it takes.
            expected: Seconds that it was thought to take when it began.
            after: Seconds that later stages take whatever time is left.
        """
        self.budget.note_at_times()
        now = time.monotonic()
        if what != self._stage:
            self._stage, self._begun = what, now
        spent = now - self._begun
        need = max(expected - spent, 0.0)
        if done > 0:
            need = spent / done * max(min(sure, total) - done, 0.0)
        self._display(what, done, total, max(self.budget.left, need + after))
