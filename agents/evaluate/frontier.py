"""Time at equal loss: what a run cost, over what the best fixed size needs for the same loss.

A run of so many epochs has no target, and its cost alone says nothing: less time may have been
bought with a worse model. So its cost is held against the frontier: the least cost at which any
fixed batch size, at any length of run with its own full schedule, ends with that loss. 1 is as good
as the best fixed size and length, found in hindsight; below is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import ConfigurationError

MOST_EXTRAPOLATION = math.sqrt(2.0)
"""Factor of the cost, half a doubling, by which the frontier is followed beyond its ends."""


@dataclass(frozen=True)
class FixedEnd:
    """How runs of one fixed batch size and one length ended, on one clock.

    Attributes:
        batch_size: Samples per optimizer step.
        samples: Length of the run and of its schedule.
        cost: Of the run, in the clock's unit.
        loss: Final validation loss, the mean over seeds; infinite where a run was lost.
    """

    batch_size: int
    samples: float
    cost: float
    loss: float


@dataclass(frozen=True)
class FrontierCost:
    """Where the frontier has a loss.

    Attributes:
        cost: Least cost of the loss.
        batch_size: Fixed size that has it.
        beyond: The loss lies beyond all that was run, further than it is extrapolated; then the
            cost is that of the frontier's end: the true one is larger for a lower loss, and
            smaller for a higher one.
    """

    cost: float
    batch_size: int
    beyond: bool = False


class Frontier:
    """Least cost of each final loss, over fixed sizes and lengths of run."""

    def __init__(self, ends: Iterable[FixedEnd]) -> None:
        """Order the ends of runs.

        Those that were lost, or are no better than a cheaper one of the same size, are left out.

        Raises:
            ConfigurationError: Nothing is left.
        """
        by_size: dict[int, list[FixedEnd]] = {}
        for end in ends:
            if math.isfinite(end.loss):
                by_size.setdefault(end.batch_size, []).append(end)
        self._lines = {size: _falling(found) for size, found in sorted(by_size.items())}
        if not self._lines:
            raise ConfigurationError(
                "A frontier needs fixed runs with a finite loss, got none. Lower the learning rate."
            )

    def at(self, loss: float) -> FrontierCost:
        """Return the least cost of a final loss.

        Between two lengths of one size the logarithm of the cost is linear in the loss. Below the
        lowest and above the highest loss of a size its last two lengths are continued, by
        `MOST_EXTRAPOLATION` in cost at most.
        """
        found = [
            FrontierCost(cost, size, beyond)
            for size, line in self._lines.items()
            for cost, beyond in [_cost_on(line, loss)]
            if cost is not None
        ]
        if found:
            return min(found, key=lambda one: (one.cost, one.batch_size))
        last = min((line[-1] for line in self._lines.values()), key=lambda end: end.loss)
        return FrontierCost(last.cost * MOST_EXTRAPOLATION, last.batch_size, beyond=True)


def time_at_equal_loss(cost: float, loss: float, frontier: Frontier) -> float:
    """Return a run's cost over the frontier's at its final loss.

    A run that was lost counts `UNREACHED_RATIO`. Others are not capped: a user's size may be far
    from the best on a large device.

    Args:
        cost: Of the run, in the frontier's unit.
        loss: Its final validation loss.
        frontier: Of the same task, coupling and clock.
    """
    if not math.isfinite(loss):
        return UNREACHED_RATIO
    return cost / frontier.at(loss).cost


def _falling(ends: Sequence[FixedEnd]) -> list[FixedEnd]:
    """Return the ends by cost, without those that a cheaper one equals or beats."""
    line: list[FixedEnd] = []
    for end in sorted(ends, key=lambda end: (end.cost, end.loss)):
        if not line or end.loss < line[-1].loss:
            line.append(end)
    return line


def _cost_on(line: Sequence[FixedEnd], loss: float) -> tuple[float | None, bool]:
    """Return the cost of a loss at one size, and whether the loss lies further out than allowed.

    Below the lowest loss of a size that cost is not known. Above the highest, the shortest run has
    shown that the loss takes no more than this.
    """
    limit = math.log(MOST_EXTRAPOLATION)
    if loss > line[0].loss:
        wanted = _log_cost(line[0], line[1], loss) if len(line) > 1 else -math.inf
        nearest = math.log(line[0].cost) - (limit if len(line) > 1 else 0.0)
        return math.exp(max(wanted, nearest)), wanted < nearest
    if loss < line[-1].loss:
        wanted = _log_cost(line[-1], line[-2], loss) if len(line) > 1 else math.inf
        within = wanted - math.log(line[-1].cost) <= limit
        return (math.exp(wanted), False) if within else (None, True)
    for one, other in itertools.pairwise(line):
        if other.loss <= loss:
            return math.exp(_log_cost(one, other, loss)), False
    return line[0].cost, False


def _log_cost(one: FixedEnd, other: FixedEnd, loss: float) -> float:
    """Return the logarithm of the cost of a loss, on the line through two ends."""
    share = (loss - one.loss) / (other.loss - one.loss)
    return math.log(one.cost) + share * math.log(other.cost / one.cost)
