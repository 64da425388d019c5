"""The one interface of everything that decides a batch size.

A decision is a pure function of what was observed and of a state that goes in and comes out. There
is no clock, no file, no trainer and no hidden attribute inside, so that a recorded run can be
replayed, a policy can be run on thousands of simulated runs at once, and a checkpoint needs only
the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Numeric, Signals

Observation = NDArray[np.float32]


def noise_rate_of(policy: Policy) -> float:
    """Return how densely a policy wants the gradient noise measured.

    That is its attribute `noise_rate` where it has one, as a learned policy does, which decides
    best with what it was trained with.

    Args:
        policy: Anything of the protocol.

    Returns:
        The rate of `rlbatch.signals.cadence.measured_among`; 0 for a policy that needs no noise.
    """
    if not policy.needs_gradient_noise:
        return 0.0
    return float(getattr(policy, "noise_rate", NOISE_RATE))


@dataclass(frozen=True)
class Decision:
    """What a policy asks for.

    Attributes:
        log2_change: Requested change of log2(batch size); scalar, or one entry a run.
        probabilities: Probability of each entry of the action grid, shape (..., actions); None for
            rules.
        value: The policy's estimate of the return from here (negative remaining cost in reference
            units); None for rules.
        reasons: Why, in words: one entry from each rule or wrapper that had a say. Filled for
            single runs only.
        fell_back: Something stood in for the policy that was to decide, see
            `rlbatch.policy.fallback`; one truth value, or one entry a run.
    """

    log2_change: Numeric
    probabilities: NDArray[np.float32] | None = None
    value: Numeric | None = None
    reasons: tuple[str, ...] = field(default=())
    fell_back: bool | NDArray[np.bool_] = False


@runtime_checkable
class Policy(Protocol):
    """Anything that decides."""

    @property
    def needs_gradient_noise(self) -> bool:
        """False tells the run that no gradient statistics are wanted.

        Then none are taken. A class attribute, an instance attribute, a frozen dataclass's field or
        a property will do: it is only read.
        """
        ...

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the state before the first decision, for runs with these leading axes.

        The state is made of tuples, NumPy arrays and plain numbers only, so that a checkpoint can
        hold it.
        """
        ...

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the decision after a chunk, and the next state.

        Args:
            observation: Output of `rlbatch.observation.encode`, shape (..., features).
            signals: The chunk's raw measurements (rules read these).
            state: What the previous call returned; never modified in place.
        """
        ...
