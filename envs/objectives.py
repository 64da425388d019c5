"""What a run is asked to achieve, and how the decisions of a run are spaced."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rlbatch.envs.profiles import CostWeights
from rlbatch.errors import ConfigurationError
from rlbatch.signals import cadence
from rlbatch.signals.record import Array

UNREACHED_RATIO = 4.0
"""Ratio that counts for a run that never reaches its target; such a run is stopped at this multiple
of the reference."""

BUDGET_REACH = 2.0
"""Under the `budget` objective fixed sizes are looked at up to this multiple of the budget."""


def disutility(ratio: float | Array) -> Array:
    """Return how bad it is to have spent this multiple of the reference cost, any shape.

    Up to the reference the ratio itself, beyond it `1 + ln(ratio)`: results are geometric means, in
    which a run that ends at twice the reference outweighs one at half of it. In the ratio itself it
    would count double, and a run that is not reached three times as much as it does in the result.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    return np.where(ratio <= 1.0, ratio, 1.0 + np.log(np.maximum(ratio, 1.0)))


@dataclass(frozen=True)
class Objective:
    """`target`: least cost to a validation loss. `budget`: least loss for a given cost.

    `epochs`: so many samples, at less cost and no worse a loss than at the task's batch size.

    Attributes:
        target_loss: Validation loss that ends the run; None for the other objectives.
        budget: Cost that ends the run; under the others a limit, None for none.
        weights: What counts as cost.
        planned_samples: Samples that end the run, for the `epochs` objective.
    """

    target_loss: float | None = None
    budget: float | None = None
    weights: CostWeights = field(default_factory=CostWeights)
    planned_samples: float | None = None

    def __post_init__(self) -> None:
        """Refuse an objective without an end."""
        ends = {name: getattr(self, name) for name in ("target_loss", "budget", "planned_samples")}
        if all(value is None for value in ends.values()):
            raise ConfigurationError(
                "An objective needs a target_loss, a budget or planned_samples, got none of them."
            )
        if self.target_loss is not None and self.planned_samples is not None:
            raise ConfigurationError("Give a target_loss or planned_samples, got both.")
        for name, value in ends.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be positive and finite, got {value}.")

    @property
    def kind(self) -> str:
        """`target`, `budget` or `epochs`."""
        if self.target_loss is not None:
            return "target"
        return "budget" if self.planned_samples is None else "epochs"


@dataclass(frozen=True)
class Cadence(cadence.Cadence):
    """Optimizer steps between two decisions, and between two validations.

    Attributes:
        validation_growth: The next validation comes after this share of the steps so far.
    """

    validation_growth: float = 0.03

    def __post_init__(self) -> None:
        """Refuse chunks without a step."""
        super().__post_init__()
        if not 0 <= self.validation_growth < math.inf:
            raise ConfigurationError(
                "A cadence needs a finite validation_growth of at least 0, got "
                f"validation_growth={self.validation_growth}."
            )

    def validation_steps(self, steps_done: int) -> int:
        """Steps from `steps_done` to the next validation."""
        return max(1, int(self.validation_growth * steps_done))
