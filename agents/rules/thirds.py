"""Thirds: half the batch size, the whole, and half as much again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlbatch.agents.rules.staircase import staircase
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Thirds(tools.Stateless):
    """Takes 1/2, 1 and 3/2 of the user's batch size in the three thirds of the planned samples.

    The schedule of a record in the modded-nanogpt speedrun (2026). The record also multiplies the
    learning rate, by 1, 1.5 and 1.7 to 1.9; here the rate follows the run's LR coupling instead:
    with `sqrt` by 0.71, 1 and 1.22, that is 1, 1.41 and 1.73 relative to the first third. The first
    chunk runs at the user's size, as no policy is asked before it.
    """

    needs_gradient_noise = False
    goes_below_base = True

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the third's multiple; "stay" where the length is unknown."""
        return staircase("thirds", signals, 0.5, [(1 / 3, 1.0), (2 / 3, 1.5)]), state
