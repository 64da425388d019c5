"""Distrust a learned policy where it was never trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy, noise_rate_of
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Fallback(Wrapper):
    """Takes another policy's decision where the observation is strange to the first.

    Strange means: several features outside of their range in training, or an observation or a
    decision that is not finite. Both policies decide after every chunk, so that the second one's
    averages are current when it is needed; probabilities and value stay those of the first.

    Attributes:
        policy: The policy that normally decides.
        fallback: The policy for strange observations.
        low: Smallest value of each feature in training; empty to check for finite values only.
        high: Largest value of each feature in training; empty likewise.
        margin: How far outside of its range a feature counts as outside.
        min_features: Features outside of their range that make an observation strange.
    """

    policy: Policy
    fallback: Policy
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    margin: float = 0.05
    min_features: int = 3

    def __post_init__(self) -> None:
        if {len(self.low), len(self.high)} not in ({0}, {OBSERVATION_SIZE}):
            raise ConfigurationError(
                f"Fallback.low and high must both be empty or have {OBSERVATION_SIZE} entries; "
                f"got {len(self.low)} and {len(self.high)}."
            )
        if self.margin < 0 or self.min_features < 1:
            raise ConfigurationError(
                "Fallback needs margin >= 0 and min_features >= 1; got "
                f"{self.margin} and {self.min_features}."
            )

    @property
    def needs_gradient_noise(self) -> bool:
        """True where one of the two policies needs it."""
        return self.policy.needs_gradient_noise or self.fallback.needs_gradient_noise

    @property
    def noise_rate(self) -> float:
        """As the policy, or else as the fallback."""
        return noise_rate_of(self.policy) or noise_rate_of(self.fallback)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (first policy's state, second policy's state)."""
        return self.policy.initial_state(shape), self.fallback.initial_state(shape)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the first policy's decision, with the second's change where it is strange."""
        first_state, second_state = state
        finite = np.isfinite(observation).all(axis=-1)
        tame = np.nan_to_num(observation, nan=0.0, posinf=0.0, neginf=0.0)
        first, first_state = self.policy.decide(tame, signals, first_state)
        second, second_state = self.fallback.decide(tame, signals, second_state)
        outside = self._outside(tame)
        strange = (
            ~finite | (outside.sum(axis=-1) >= self.min_features) | ~np.isfinite(first.log2_change)
        )
        change = tools.numeric(np.where(strange, second.log2_change, first.log2_change))
        made = replace(first, log2_change=change)
        if isinstance(change, float) and strange:
            why = _explain(bool(finite), outside)
            reasons = (
                *first.reasons,
                *second.reasons,
                f"fallback: {tools.describe(change)} ({why})",
            )
            made = replace(made, reasons=reasons)
        return made, (first_state, second_state)

    def _outside(self, observation: Observation) -> NDArray[np.bool_]:
        """Return which features are outside of their range in training, shape (..., features)."""
        if not self.low:
            return np.zeros(observation.shape, dtype=np.bool_)
        low = np.asarray(self.low) - self.margin
        high = np.asarray(self.high) + self.margin
        return (observation < low) | (observation > high)


def _explain(finite: bool, outside: NDArray[np.bool_]) -> str:
    if not finite:
        return "observation not finite"
    names = [name for name, is_out in zip(OBSERVATION_NAMES, outside, strict=True) if is_out]
    if not names:
        return "decision not finite"
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} features outside of training: {', '.join(names[:3])}{more}"
