"""One trial of a search: a whole training at one batch size and rate; as values."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from rlbatch.agents.search.goal import Goal


@dataclass(frozen=True, order=True)
class TrialSpec:
    """What tells the trials of a search apart.

    Attributes:
        batch_size: Samples per optimizer step.
        rate: Multiplies the learning rate that the coupling gives at this size, as log2.
        seed: Of the weights and the order of the data.
    """

    batch_size: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Stop:
    """When a trial is hopeless. Empty: never.

    Attributes:
        max_cost: Cost from which on a run to a target is given up.
        samples: Samples at which the best size so far was validated.
        losses: Its validation losses there.
        best_score: Its score.
    """

    max_cost: float | None = None
    samples: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    best_score: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        complete: It ended as its goal wants it: at the target, or after its epochs or its budget.
        stopped: It was given up as hopeless.
        diverged: Its weights were lost.
        fits: It was within the memory limit; if not, it was not run.
        cost: Spent, in the clock's unit.
        loss: The last validation loss; NaN without any.
        steps: Optimizer steps.
        samples: Samples seen.
        seconds: Real seconds that it took on this machine.
        memory: Bytes that a pass of this size needs; 0 if nobody measured it.
        curve: (samples, cost, validation loss) of some of its validations.
    """

    complete: bool
    stopped: bool
    diverged: bool
    cost: float
    loss: float
    steps: int
    samples: int
    seconds: float
    fits: bool = True
    memory: int = 0
    curve: tuple[tuple[float, float, float], ...] = ()

    def score(self, goal: Goal) -> float:
        """Return how bad it was; infinite if it did not end as it should."""
        return goal.score(self.cost, self.loss) if self.complete else math.inf

    def to_json(self) -> str:
        """Return it as JSON text; losses that are no numbers are null."""
        values = asdict(self)
        values["loss"] = _finite(self.loss)
        values["curve"] = [[samples, cost, _finite(loss)] for samples, cost, loss in self.curve]
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Return what `to_json` wrote."""
        values = json.loads(text)
        values["loss"] = _number(values["loss"])
        values["curve"] = tuple(
            (samples, cost, _number(loss)) for samples, cost, loss in values["curve"]
        )
        return cls(**values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
