"""What is known about a learned policy besides its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Coupling

OBJECTIVES = ("target", "budget", "epochs")


@dataclass(frozen=True)
class PolicyCard:
    """How a policy was made and what it achieved; travels in the policy file.

    Attributes:
        objectives: Objectives that training has seen: "target", "budget", "epochs".
        couplings: LR couplings that training has seen (values of `Coupling`).
        noise_rate: How densely the gradient noise was measured in training, see
            `rlbatch.signals.cadence.measured_among`.
        recipe: Name of the training recipe.
        recipe_hash: Hash of the resolved recipe.
        results: Measured results, as JSON-compatible values (for example the ratio by task set).
        observation_low: Smallest value of each feature in training (for `Fallback`); empty when
            not recorded.
        observation_high: Largest value of each feature in training; empty when not recorded.
        rlbatch_version: Version that wrote the file; filled in by `save_policy`.
    """

    objectives: tuple[str, ...] = ()
    couplings: tuple[str, ...] = ()
    noise_rate: float = NOISE_RATE
    recipe: str = ""
    recipe_hash: str = ""
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    observation_low: tuple[float, ...] = ()
    observation_high: tuple[float, ...] = ()
    rlbatch_version: str = ""

    def __post_init__(self) -> None:
        for name, values, known in (
            ("objectives", self.objectives, OBJECTIVES),
            ("couplings", self.couplings, tuple(coupling.value for coupling in Coupling)),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ConfigurationError(
                    f"PolicyCard.{name} holds {unknown!r}; use values of {', '.join(known)}."
                )
        if not 0.0 <= self.noise_rate < math.inf:
            raise ConfigurationError(
                f"PolicyCard.noise_rate must be finite and not negative, got {self.noise_rate}."
            )
        lengths = {len(self.observation_low), len(self.observation_high)}
        if lengths not in ({0}, {OBSERVATION_SIZE}):
            raise ConfigurationError(
                "PolicyCard.observation_low and observation_high must both be empty or both have "
                f"{OBSERVATION_SIZE} entries; got {len(self.observation_low)} and "
                f"{len(self.observation_high)}."
            )


class Trained:
    """A policy with a card.

    Attributes:
        card: How it was made.
    """

    card: PolicyCard

    @property
    def noise_rate(self) -> float:
        """How densely the gradient noise is measured: as in training."""
        return self.card.noise_rate
