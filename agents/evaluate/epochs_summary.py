"""What runs of so many epochs amount to: time at equal loss, and time and loss beside the user's.

A run that was lost counts `UNREACHED_RATIO` in the time at equal loss and `LOST_LOSS` in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.rows import Row
from rlbatch.agents.evaluate.settings import EPOCHS
from rlbatch.agents.evaluate.summary import Mean, geometric_mean, to_json

LOST_LOSS = 2.0
WORSE = 1.02
"""Final loss over that of the user's size from which a run counts as worse."""


@dataclass(frozen=True)
class EpochsSummary:
    """A policy's results in runs of so many epochs.

    Attributes:
        policy: Its name.
        runs: Number of runs.
        ratio: Time at equal loss.
        time: Cost over that of the user's size for as many samples.
        loss: Final validation loss over that of the user's size, the same seed.
        worse: Share of the runs whose loss is more than `WORSE` times the user's.
        worst_loss: Largest loss over the user's.
        changes: Median number of changes of the batch size in a run.
        most_changes: Largest.
        beyond: Share of the runs whose loss lies beyond the frontier: their time at equal loss is
            that of its end.
    """

    policy: str
    runs: int
    ratio: Mean
    time: Mean
    loss: Mean
    worse: float
    worst_loss: float
    changes: float
    most_changes: int
    beyond: float


def epochs_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the results of runs of so many epochs."""
    return [row for row in rows if row["objective"].startswith(EPOCHS)]


def with_epochs(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what `rlbatch.agents.evaluate.summary.to_json` says, runs of epochs kept apart.

    Args:
        rows: Results of any objectives.
    """
    planned = epochs_rows(rows)
    others = [row for row in rows if row not in planned]
    found: dict[str, Any] = to_json(others) if others else {"runs": 0}
    if planned:
        profiles = dict.fromkeys(row["profile"] for row in planned)
        found["epochs"] = {
            name: [asdict(one) for one in summarize_epochs(part)]
            for name in profiles
            for part in [[row for row in planned if row["profile"] == name]]
        }
    return found


def summarize_epochs(rows: Sequence[Row]) -> list[EpochsSummary]:
    """Return one summary a policy, best time at equal loss first."""
    found = [
        _summary(policy, [row for row in rows if row["policy"] == policy])
        for policy in dict.fromkeys(row["policy"] for row in rows)
    ]
    return sorted(found, key=lambda summary: (summary.ratio.value, summary.policy))


def _summary(policy: str, rows: Sequence[Row]) -> EpochsSummary:
    clusters = [(row["task"], row["seed"]) for row in rows]
    losses = np.array([row["loss_to_default"] or LOST_LOSS for row in rows])
    changes = [row["changes"] for row in rows]

    def mean(values: Sequence[float]) -> Mean:
        return geometric_mean(np.log(values), clusters)

    return EpochsSummary(
        policy=policy,
        runs=len(rows),
        ratio=mean([row["ratio"] for row in rows]),
        time=mean([row["time_to_default"] for row in rows]),
        loss=mean(list(losses)),
        worse=float(np.mean(losses > WORSE)),
        worst_loss=float(losses.max()),
        changes=float(np.median(changes)),
        most_changes=max(changes),
        beyond=float(np.mean([row["beyond_frontier"] for row in rows])),
    )
