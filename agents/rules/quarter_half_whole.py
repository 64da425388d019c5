"""Quarter, half, whole: a short warm-up of the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlbatch.agents.rules.staircase import check_shares, staircase
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class QuarterHalfWhole(tools.Stateless):
    """Warms the batch size up: a quarter of the user's, half of it, all of it.

    Proposed for nanochat (2026), there with the learning rate by the square root of the batch
    size: the run's LR coupling `sqrt`. It saves samples rather than steps. The first chunk runs at
    the user's size, as no policy is asked before it.

    Attributes:
        half: Share of the planned samples at which the quarter ends.
        whole: Share at which the half ends.
    """

    half: float = 0.03
    whole: float = 0.1

    needs_gradient_noise = False
    goes_below_base = True

    def __post_init__(self) -> None:
        check_shares("QuarterHalfWhole", half=self.half, whole=self.whole)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the multiple in force; "stay" where the length is unknown."""
        steps = [(self.half, 0.5), (self.whole, 1.0)]
        return staircase("quarter-half-whole", signals, 0.25, steps), state
