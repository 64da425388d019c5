"""What a search looks for: when a run ends, and how good it was.

Lower scores are better. With an efficiency e from 0 to 1 a run of so many epochs scores

    loss^(1 - e) * cost^e

the weighted geometric mean of its final validation loss and its cost: e = 1/2 is the energy-delay
product of computer architecture (Gonzalez and Horowitz 1996) with the loss for the delay. Units
cancel out of every comparison, and 1% of loss weighs as much as (1 - e) / e percent of cost. A run
to a target scores its cost, and a run for a given cost its loss: there the other is fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlbatch.errors import ConfigurationError

Kind = Literal["target", "budget", "epochs"]
_FORMS = "'target', 'epochs=N' or 'budget=COST'"


@dataclass(frozen=True)
class Goal:
    """When runs end and how they compare.

    Attributes:
        kind: `target`: at the task's validation loss. `epochs`: after so many passes over the data.
            `budget`: when so much is spent, in the clock's unit.
        amount: Epochs or cost; 0 for a target.
        efficiency: From 0, quality only, to 1, cost only. Free for `epochs` only.
    """

    kind: Kind
    amount: float = 0.0
    efficiency: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what nothing could be chosen by."""
        if self.kind != "target" and not (math.isfinite(self.amount) and self.amount > 0):
            raise ConfigurationError(f"{self.kind} needs a positive amount, got {self.amount}.")
        if not 0.0 <= self.efficiency <= 1.0:
            raise ConfigurationError(
                "An efficiency lies between 0 (quality only) and 1 (cost only), "
                f"got {self.efficiency}."
            )

    def score(self, cost: float, loss: float) -> float:
        """Return how bad a finished run was, above 0; infinite if its loss is no number."""
        if not math.isfinite(loss):
            return math.inf
        return math.exp(
            (1.0 - self.efficiency) * math.log(max(loss, 1e-300))
            + self.efficiency * math.log(max(cost, 1e-300))
        )

    @property
    def text(self) -> str:
        """As on the command line."""
        return self.kind if self.kind == "target" else f"{self.kind}={self.amount:g}"


def parse_goal(text: str, efficiency: float | None = None) -> Goal:
    """Return the goal of a text.

    Args:
        text: `target`, `epochs=N` or `budget=COST`.
        efficiency: See `Goal`; None takes 0 for epochs.

    Raises:
        ConfigurationError: The text is none of these, or an efficiency is given where quality or
            cost is the same for all.
    """
    kind, equals, amount = text.partition("=")
    if kind == "target" and not equals:
        return Goal("target", 0.0, _fixed(efficiency, 1.0, "target", "they are equally good"))
    if kind == "budget" and equals:
        fixed = _fixed(efficiency, 0.0, "budget", "they cost the same")
        return Goal("budget", _number(amount, text), fixed)
    if kind == "epochs" and equals:
        return Goal("epochs", _number(amount, text), 0.0 if efficiency is None else efficiency)
    raise ConfigurationError(f"An objective is {_FORMS}, got {text!r}.")


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"An objective is {_FORMS}, got {whole!r}.") from error


def _fixed(given: float | None, value: float, kind: str, why: str) -> float:
    if given is not None and given != value:
        raise ConfigurationError(
            f"Under --objective {kind} there is nothing to weigh: runs that end there differ in "
            f"one thing only ({why}). Leave --efficiency out, or take --objective epochs=N."
        )
    return value


def noise_scale_theta(efficiency: float, loss_exponent: float = 0.3) -> float:
    """Return the `theta` of the `noise-scale` policy that stands for an efficiency.

    Samples at a batch size B count 1 / (1 + B / phi) each (McCandlish et al. 2018, equation 2.7),
    phi being the noise scale; let the loss fall as their number to the power of -`loss_exponent`,
    and let a step cost the same at every size, where larger ones pay most. Then loss^(1-e) cost^e
    is least at B = phi r / (1 - r) with r = e / ((1 - e) loss_exponent), and `noise-scale` takes
    B = phi / theta^2.

    Args:
        efficiency: Above 0 and below 1.
        loss_exponent: How the loss falls with the samples.

    Returns:
        theta; 0 where the largest size is best, which is so from r = 1 on.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    if not (0.0 < efficiency < 1.0 and loss_exponent > 0.0):
        raise ConfigurationError(
            "Expected an efficiency between 0 and 1 and a positive loss_exponent, got "
            f"{efficiency} and {loss_exponent}."
        )
    share = efficiency / ((1.0 - efficiency) * loss_exponent)
    return math.sqrt((1.0 - share) / share) if share < 1.0 else 0.0
