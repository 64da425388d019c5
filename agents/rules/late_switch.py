"""Late switch: a large batch for the last quarter of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlbatch.agents.rules.staircase import check_shares, staircase
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class LateSwitch(tools.Stateless):
    """Multiplies the user's batch size once, late in the run.

    Wang et al. 2026, "Fast catch-up, late switching: optimal batch size scheduling via functional
    scaling laws" (arXiv 2602.14208): on hard tasks a run that switches to a large batch catches up
    soon with one that had it from the start, so the switch can wait. The paper fits the place of
    the switch to smaller runs, D - P = c D^g for D samples in all; without such runs a share of the
    planned samples takes its place.

    Attributes:
        share: Of the planned samples, at which the size is multiplied.
        factor: By which it is multiplied. The paper leaves it to the hardware.
    """

    share: float = 0.75
    factor: float = 4.0

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        check_shares("LateSwitch", share=self.share)
        factor = self.factor
        tools.check(0 < factor < float("inf"), "LateSwitch.factor must be above 0", factor)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the multiple in force; "stay" where the length is unknown."""
        return staircase("late-switch", signals, 1.0, [(self.share, self.factor)]), state
