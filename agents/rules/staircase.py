"""Multiples of the user's batch size at shares of the planned samples: what schedules share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision
from rlbatch.signals.record import Signals


def staircase(
    name: str, signals: Signals, first: float, steps: Sequence[tuple[float, float]]
) -> Decision:
    """Return the change to the multiple that is in force.

    The user's size is `RunContext.base_batch_size`. Nothing is remembered, so a run that resumes,
    or that somebody held back, goes to the multiple of its place at once. A run whose length
    nobody told stays where it is.

    Args:
        name: The rule's name, for the reason.
        signals: Of the chunk.
        first: Multiple from the start.
        steps: Pairs of a share of the planned samples and the multiple from there on, in order.
    """
    planned = np.asarray(signals.context.planned_samples, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        done = np.asarray(signals.total_samples, dtype=np.float64) / planned
    known = np.isfinite(done)
    multiple = np.full(done.shape, float(first))
    for share, then in steps:
        multiple = np.where(known & (done >= share), then, multiple)
    wanted = np.maximum(np.asarray(signals.context.base_batch_size) * multiple, 1.0)
    change = np.where(known, tools.change_to(wanted, signals.batch_size), 0.0)
    why = "{:.0%} of the planned samples" if np.all(known) else "length of the run not known"
    return tools.decision(change, name, why, done)


def check_shares(rule: str, **shares: float) -> None:
    """Refuse shares of a run that are not in (0, 1) or not in order.

    Raises:
        ConfigurationError: With what was expected and what came.
    """
    names, values = list(shares), list(shares.values())
    for name, value in shares.items():
        tools.check(0 < value < 1, f"{rule}.{name} must be between 0 and 1", value)
    ordered = all(a < b for a, b in pairwise(values))
    tools.check(ordered, f"{rule}: {' must be below '.join(names)}", values)
