"""Recommend without acting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.elementwise import spread
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Shadow(Wrapper):
    """Always asks to stay; what the inner policy wanted is in the reasons and probabilities.

    Gradient noise is measured as the inner policy needs it, so that it decides as in earnest.

    Attributes:
        policy: The inner policy.
    """

    policy: Policy

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return "stay", with the inner decision's reasons, probabilities and value."""
        asked, state = self.policy.decide(observation, signals, state)
        return tools.adjusted(asked, spread(0.0, asked.log2_change), "shadow"), state
