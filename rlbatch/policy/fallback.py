"""Distrust a learned policy where it was never trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy, noise_rate_of
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.elementwise import isfinite, where
from rlbatch.signals.record import Array, Signals

_SHOWN = 3  # features in a reason


@dataclass(frozen=True)
class Fallback(Wrapper):
    """Takes another policy's decision where the observation is strange to the first.

    Strange means: several features outside of their range in training. One such observation holds
    the batch size; `patience` of them in a row hand the run over to the fallback, and as many
    ordinary ones in a row give it back, so that the two do not pull the size to and fro. An
    observation or a decision that is not finite is replaced by the fallback's at once.

    Both policies see every chunk, so that the second one's averages are current when it is needed;
    probabilities and value stay those of the first. Where a single run does not need the second's
    decision, its `next_state(signals, state)` is asked in place of `decide`, if it has that.

    Attributes:
        policy: The policy that normally decides.
        fallback: The policy for strange observations.
        low: Smallest value of each feature in training; empty to check for finite values only.
        high: Largest value of each feature in training; empty likewise.
        margin: How far outside of its range a feature counts as outside.
        min_features: Features outside of their range that make an observation strange.
        patience: Observations in a row that change who decides.
    """

    policy: Policy
    fallback: Policy
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    margin: float = 0.1
    min_features: int = 2
    patience: int = 3

    def __post_init__(self) -> None:
        if {len(self.low), len(self.high)} not in ({0}, {OBSERVATION_SIZE}):
            raise ConfigurationError(
                f"Fallback.low and high must both be empty or have {OBSERVATION_SIZE} entries; "
                f"got {len(self.low)} and {len(self.high)}."
            )
        if self.margin < 0 or self.min_features < 1 or self.patience < 1:
            raise ConfigurationError(
                "Fallback needs margin >= 0, min_features >= 1 and patience >= 1; got "
                f"{self.margin}, {self.min_features} and {self.patience}."
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
        """Return both policies' states, who decides, and how long the observations say otherwise.

        The third entry is 1 where the fallback decides; the fourth counts observations in a row
        that speak for the other policy.
        """
        second, nobody = self.fallback.initial_state(shape), np.zeros(shape, dtype=np.int64)
        return self.policy.initial_state(shape), second, nobody, nobody

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the first policy's decision, or what stands in for it."""
        first_state, second_state, taken_over, streak = state
        numbers = np.isfinite(observation)
        finite, tame = numbers.all(axis=-1), observation
        if observation.ndim > 1 or not finite:  # or else it is what it would be made
            tame = np.where(numbers, observation, np.float32(0.0))
        first, first_state = self.policy.decide(tame, signals, first_state)
        outside = self.outside(tame)
        broken = ~finite | ~isfinite(first.log2_change)
        strange = broken | (np.add.reduce(outside, axis=-1, dtype=np.intp) >= self.min_features)
        taken = np.asarray(taken_over)[()] > 0
        streak = (np.asarray(streak)[()] + 1) * (strange != taken)
        turns = streak >= self.patience
        taken = (turns & strange) | (~turns & taken)
        streak *= ~turns
        by_second = broken | taken
        next_state = getattr(self.fallback, "next_state", None)
        if next_state is not None and observation.ndim == 1 and not by_second:
            second, second_state = first, next_state(signals, second_state)
        else:
            second, second_state = self.fallback.decide(tame, signals, second_state)
        next_own = first_state, second_state, taken.astype(np.int64), streak
        if observation.ndim == 1 and not (by_second | strange | first.fell_back):
            return first, next_own
        change = where(by_second, second.log2_change, where(strange, 0.0, first.log2_change))
        made = replace(
            first, log2_change=tools.numeric(change), fell_back=tools.flag(by_second | strange)
        )
        if np.ndim(change) == 0 and made.fell_back:
            why = self._explain(tame, outside, finite=bool(finite), strange=bool(strange))
            said = f"fallback: {tools.describe(float(change))} ({why})"
            seconds = second.reasons if by_second else ()
            made = replace(made, reasons=(*first.reasons, *seconds, said))
        return made, next_own

    def outside(self, observation: Observation) -> NDArray[np.bool_]:
        """Return which features are outside of their range in training, shape (..., features)."""
        if not self.low:
            return np.zeros(observation.shape, dtype=np.bool_)
        low, high = self._limits
        return (observation < low) | (observation > high)

    @cached_property
    def _limits(self) -> tuple[Array, Array]:
        return np.asarray(self.low) - self.margin, np.asarray(self.high) + self.margin

    def _explain(
        self, seen: Observation, outside: NDArray[np.bool_], *, finite: bool, strange: bool
    ) -> str:
        """Return in words why the first policy did not decide in a single run."""
        if not finite:
            return "observation not finite"
        if not strange:
            return "ordinary again, but not for long"
        if outside.sum() < self.min_features:
            return "decision not finite"
        low, high = np.asarray(self.low), np.asarray(self.high)
        beyond = np.where(outside, np.maximum(low - seen, seen - high), 0.0)
        worst = np.argsort(-beyond, kind="stable")[: int(outside.sum())]
        shown = ", ".join(
            f"{OBSERVATION_NAMES[place]} is {seen[place]:.2f}, in training {low[place]:.2f} to "
            f"{high[place]:.2f}"
            for place in worst[:_SHOWN]
        )
        more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
        return f"outside of training: {shown}{more}"
