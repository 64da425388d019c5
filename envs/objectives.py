"""What a run is asked to achieve, and how the decisions of a run are spaced."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlbatch.envs.profiles import CostWeights
from rlbatch.errors import ConfigurationError
from rlbatch.signals.cadence import chunk_steps

UNREACHED_RATIO = 4.0
"""Ratio that counts for a run that never reaches its target; such a run is stopped at this multiple
of the reference."""


@dataclass(frozen=True)
class Objective:
    """`target`: least cost to a validation loss. `budget`: least loss for a given cost.

    Attributes:
        target_loss: Validation loss that ends the run; None for the `budget` objective.
        budget: Cost that ends the run; under `target` a limit, None for none.
        weights: What counts as cost.
    """

    target_loss: float | None = None
    budget: float | None = None
    weights: CostWeights = field(default_factory=CostWeights)

    def __post_init__(self) -> None:
        """Refuse an objective without an end."""
        if self.target_loss is None and self.budget is None:
            raise ConfigurationError("An objective needs a target_loss or a budget, got neither.")
        for name, value in (("target_loss", self.target_loss), ("budget", self.budget)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be positive and finite, got {value}.")

    @property
    def kind(self) -> str:
        """`target` or `budget`."""
        return "budget" if self.target_loss is None else "target"


@dataclass(frozen=True)
class Cadence:
    """Optimizer steps between two decisions, and between two validations.

    A chunk is `max(minimum, growth x steps so far)` steps, at most `maximum`; the first ones are
    shorter. See `rlbatch.signals.cadence.chunk_steps`.
    """

    minimum: int = 4
    growth: float = 0.1
    maximum: int = 200
    validation_growth: float = 0.03
    first: int = 1

    def __post_init__(self) -> None:
        """Refuse chunks without a step."""
        ordered = 1 <= self.first <= self.minimum <= self.maximum
        shares = (self.growth, self.validation_growth)
        if not (ordered and all(0 <= share < math.inf for share in shares)):
            raise ConfigurationError(
                "A cadence needs 1 <= first <= minimum <= maximum, and a growth and a "
                f"validation_growth that are finite and not negative; got first={self.first}, "
                f"minimum={self.minimum}, maximum={self.maximum}, growth={self.growth}, "
                f"validation_growth={self.validation_growth}."
            )

    def chunk_steps(self, steps_done: int) -> int:
        """Steps of the chunk that starts after `steps_done` steps."""
        return int(chunk_steps(steps_done, self.minimum, self.growth, self.maximum, self.first))

    def validation_steps(self, steps_done: int) -> int:
        """Steps from `steps_done` to the next validation."""
        return max(1, int(self.validation_growth * steps_done))
