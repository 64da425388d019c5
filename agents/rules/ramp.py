"""Ramp: double at half of the run and again at three quarters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlbatch.agents.rules.staircase import check_shares, staircase
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Ramp(tools.Stateless):
    """Multiplies the user's batch size twice, at shares of the planned samples.

        B <- B0, factor B0 from `first` on, factor^2 B0 from `second` on

    The schedule that people write by hand, and what AdaBatch (Devarakonda et al. 2017, "AdaBatch:
    adaptive batch sizes for training deep neural networks") does by epochs. Its two steps are those
    at which a step schedule would halve the learning rate.

    Attributes:
        first: Share of the planned samples at which the size is multiplied.
        second: Share at which it is multiplied again.
        factor: Factor of each step.
    """

    first: float = 0.5
    second: float = 0.75
    factor: float = 2.0

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        check_shares("Ramp", first=self.first, second=self.second)
        factor = self.factor
        tools.check(0 < factor < float("inf"), "Ramp.factor must be above 0", factor)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the multiple in force; "stay" where the length is unknown."""
        steps = [(self.first, self.factor), (self.second, self.factor**2)]
        return staircase("ramp", signals, 1.0, steps), state
