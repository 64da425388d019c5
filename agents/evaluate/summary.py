"""What the results of a benchmark amount to: geometric means with intervals, tails, pairs.

Runs that never reached their target are part of every figure, with the cap. Intervals are 95%
bootstrap intervals of the geometric mean. What is drawn is not single runs but clusters of a task
and a seed with all couplings, profiles and starts, since these share their data order and weights;
comparisons are paired, cell by cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.agents.evaluate.rows import CELL_FIELDS, Row

RESAMPLES = 2_000
_SEED = 20_231
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A geometric mean with its 95% interval; the interval is None with fewer than two clusters."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Summary:
    """A policy's results.

    Attributes:
        policy: Its name.
        runs: Number of runs.
        ratio: Cost over the reference's, unreached as the cap.
        reach_rate: Share of runs that reached the target.
        p10: Tenth percentile of the ratio.
        median: Median ratio.
        p90: Ninetieth percentile.
        worst: Largest ratio.
        to_default: Cost over that of staying at the task's batch size.
        to_start: Cost over that of staying at the start batch size.
        fixed_default: The reference ratio of staying at the task's batch size, for comparison.
        fixed_start: And of staying at the start.
    """

    policy: str
    runs: int
    ratio: Mean
    reach_rate: float
    p10: float
    median: float
    p90: float
    worst: float
    to_default: Mean
    to_start: Mean
    fixed_default: Mean
    fixed_start: Mean


@dataclass(frozen=True)
class Pair:
    """Two policies on the cells that both have run.

    Attributes:
        first: A policy.
        second: Another.
        cells: Cells in common.
        ratio: Cost of the first over the second's; below 1 the first is cheaper.
        wins: Share of cells where the first is cheaper.
        ties: Share where both cost the same.
    """

    first: str
    second: str
    cells: int
    ratio: Mean
    wins: float
    ties: float


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Return one summary a policy, best first."""
    found = [
        _summary(policy, [row for row in rows if row["policy"] == policy])
        for policy in dict.fromkeys(row["policy"] for row in rows)
    ]
    return sorted(found, key=lambda summary: (summary.ratio.value, summary.policy))


def summarize_by(rows: Sequence[Row], field: str) -> dict[Any, list[Summary]]:
    """Return the summaries for each value of a field, such as `task`."""
    values = sorted({row[field] for row in rows})
    return {value: summarize([row for row in rows if row[field] == value]) for value in values}


def compare(rows: Sequence[Row]) -> list[Pair]:
    """Return every pair of policies, each pair once."""
    by_policy: dict[str, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        cell = tuple(row[name] for name in CELL_FIELDS if name != "policy")
        by_policy.setdefault(row["policy"], {})[cell] = row
    pairs: list[Pair] = []
    for (first, ours), (second, theirs) in combinations(sorted(by_policy.items()), 2):
        common = [cell for cell in ours if cell in theirs]
        if not common:
            continue
        logs = np.array([math.log(ours[c]["ratio"] / theirs[c]["ratio"]) for c in common])
        mean = geometric_mean(logs, [_cluster(ours[c]) for c in common])
        wins, ties = float((logs < -1e-9).mean()), float((np.abs(logs) <= 1e-9).mean())
        pairs.append(Pair(first, second, len(common), mean, wins, ties))
    return pairs


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything above as JSON-compatible values."""
    return {
        "runs": len(rows),
        "policies": [asdict(summary) for summary in summarize(rows)],
        "by_task": {
            task: [asdict(summary) for summary in found]
            for task, found in summarize_by(rows, "task").items()
        },
        "pairs": [asdict(pair) for pair in compare(rows)],
    }


def geometric_mean(logs: Values, clusters: Sequence[object]) -> Mean:
    """Return the geometric mean of exp(logs) with its bootstrap interval over clusters.

    Args:
        logs: Natural logarithms, shape (n,).
        clusters: The cluster of each.
    """
    _, index = np.unique([repr(cluster) for cluster in clusters], return_inverse=True)
    count = int(index.max()) + 1
    sums, sizes = np.bincount(index, logs, count), np.bincount(index, minlength=count)
    value = float(np.exp(logs.mean()))
    if count < 2:
        return Mean(value, None, None)
    rng = np.random.default_rng(_SEED)  # the same draws for every policy: intervals are repeatable
    drawn = rng.integers(count, size=(RESAMPLES, count))
    means = np.exp(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(value, float(low), float(high))


def _cluster(row: Row) -> tuple[str, int]:
    return row["task"], row["seed"]


def _summary(policy: str, rows: Sequence[Row]) -> Summary:
    clusters = [_cluster(row) for row in rows]

    def mean(value: Callable[[Row], float]) -> Mean:
        return geometric_mean(np.log([value(row) for row in rows]), clusters)

    ratios = np.array([row["ratio"] for row in rows])
    p10, median, p90 = np.quantile(ratios, [0.1, 0.5, 0.9])
    return Summary(
        policy=policy,
        runs=len(rows),
        ratio=mean(lambda row: row["ratio"]),
        reach_rate=float(np.mean([row["reached"] for row in rows])),
        p10=float(p10),
        median=float(median),
        p90=float(p90),
        worst=float(ratios.max()),
        to_default=mean(lambda row: row["ratio"] * row["reference_cost"] / row["default_cost"]),
        to_start=mean(lambda row: row["ratio"] * row["reference_cost"] / row["start_cost"]),
        fixed_default=mean(lambda row: row["default_cost"] / row["reference_cost"]),
        fixed_start=mean(lambda row: row["start_cost"] / row["reference_cost"]),
    )
