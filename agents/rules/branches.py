"""Batch size warm-up by branches: larger sizes are tried on copies of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.signals.record import Signals

MULTIPLES = (1, 2, 4, 8)
"""Multiples of the size in force that are tried, as in the source."""


class Triable(Protocol):
    """A run of which copies can be trained for a while."""

    def trial(self, batch_size: int, samples: int) -> float:
        """Return the training loss of a copy; what it costs is charged to the run."""
        ...


@dataclass(frozen=True)
class Branches(tools.Stateless):
    """Takes the largest size whose copy of the run keeps up with those of smaller sizes.

    Merrill et al. 2025, "Critical batch size revisited: a simple empirical approach to large-batch
    language model training" (arXiv 2505.23971): from a checkpoint, branches of 1, 2, 4 and 8 times
    the batch size are trained for a third of a percent of the run, the rate coupled by the square
    root (linearly for SGD). The critical size is the largest multiple whose smoothed loss, at equal
    samples, is within 0.01 of all smaller ones'. The source measures it at checkpoints by hand and
    repeats the run with a schedule read off from that; here the run goes on with it at once. It is
    asked each time the samples have doubled. The branches cost what their steps cost, and what they
    have learned is lost, as in the source.

    Restated: the margin is relative, 0.01 of a loss of 2.5. Losses are means over the second half
    of a branch, the same samples for all sizes, in place of a running mean over steps. A run of a
    thousand steps is too short for a third of a percent: a branch has two steps of the largest size
    at least. A size that falls behind ends the trials, and nothing is tried where less is left of
    the run than the trials take.

    It needs a live run, as in a benchmark; in a controller it stays where it is.

    Attributes:
        stretch: Length of a branch, relative to the planned samples where they are known.
        margin: How far above the lowest loss a branch may be, relative to that loss.
        first: First trial, in samples over the user's batch size.
        doubling: Only double, and only where the critical size is more than twice the size in
            force, as the source plans its schedule; else the critical size is taken at once.
    """

    stretch: float = 0.003
    margin: float = 0.004
    first: int = 64
    doubling: bool = False

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        tools.check(0 < self.stretch < 1, "Branches.stretch must be in (0, 1)", self.stretch)
        tools.check(0 <= self.margin < np.inf, "Branches.margin must be at least 0", self.margin)
        tools.check(self.first >= 1, "Branches.first must be at least 1", self.first)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return "stay": without a run there is nothing to copy."""
        stay = np.zeros(np.shape(signals.batch_size))
        return tools.decision(stay, "branches", "no copies of the run"), state

    def on(self, run: Triable) -> Policy:
        """Return the rule on a run."""
        return _OnRun(self, run)

    def samples(self, batch_size: int, planned: float) -> int:
        """Return the samples of a branch: whole steps of every size in each half.

        Args:
            batch_size: In force.
            planned: Samples of the whole run; NaN where nobody knows.
        """
        unit = 2 * MULTIPLES[-1] * batch_size
        wanted = self.stretch * planned
        return unit * max(1, math.ceil(wanted / unit) if math.isfinite(wanted) else 1)


class _OnRun:
    """The rule on one run, whose copies it trains."""

    needs_gradient_noise = False

    def __init__(self, rule: Branches, run: Triable) -> None:
        self._rule, self._run = rule, run

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the samples, over the user's batch size, at which the first trial is due."""
        return (float(self._rule.first),)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the largest size that keeps up, "stay" between the trials."""
        due, size = float(state[0]), round(float(signals.batch_size))
        done = float(signals.total_samples) / float(signals.context.base_batch_size)
        if done < due:
            return tools.decision(0.0, "branches"), state
        while due <= done:
            due *= 2.0
        found, losses = self._largest(size, signals)
        why = f"losses of 1, 2, 4, 8 times the size: {', '.join(f'{x:.4g}' for x in losses)}"
        change = tools.change_to(float(found), float(size))
        return tools.decision(change, "branches", why if losses else "too little is left"), (due,)

    def _largest(self, size: int, signals: Signals) -> tuple[int, list[float]]:
        """Return the largest size that keeps up, and the losses of the branches."""
        context = signals.context
        largest, planned = float(context.max_batch_size), float(context.planned_samples)
        sizes = [size * multiple for multiple in MULTIPLES if size * multiple <= largest]
        samples = self._rule.samples(size, planned)
        if planned - float(signals.total_samples) < samples * len(sizes):  # false if not known
            return size, []
        found, losses = size, list[float]()
        for candidate in sizes:
            losses.append(self._run.trial(candidate, samples))
            highest = min(losses) + self._rule.margin * abs(min(losses))
            if not losses[-1] <= highest < math.inf:
                break
            found = candidate
        if self._rule.doubling:
            found = 2 * size if found > 2 * size else size
        return found, losses
