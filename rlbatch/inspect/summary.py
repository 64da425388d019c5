"""What a run's log comes to, as plain values for `--json`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode


def summarize(episode: Episode) -> dict[str, Any]:
    """Return the run in a few numbers. Everything is strict JSON: unknown numbers are None.

    `cost_share` maps each batch size to the fraction of the cost that was spent in chunks which
    ended with it. A chunk in which a change arrived counts for the size that it started with.
    """
    records = episode.records
    sizes = [size for r in records for size in (r.batch_size_before, r.batch_size)]
    last = records[-1] if records else None
    return {
        "task": episode.run.get("task"),
        "policy": episode.run.get("policy"),
        "seed": episode.run.get("seed"),
        "records": len(records),
        "events": dict(Counter(r.event for r in records)),
        "torn": episode.torn,
        "steps": last.step if last else 0,
        "samples": last.samples_seen if last else 0,
        "epochs": finite(last.epoch) if last else 0.0,
        "cost": finite(last.cost) if last else 0.0,
        "batch_size_first": sizes[0] if sizes else None,
        "batch_size_final": sizes[-1] if sizes else None,
        "batch_size_min": min(sizes, default=None),
        "batch_size_max": max(sizes, default=None),
        "changes": sum(r.batch_size != r.batch_size_before for r in records),
        "held_back": sum(_held_back(r) for r in records),
        "cost_share": {str(size): share for size, share in cost_share(records).items()},
        "train_loss": latest(records, "train_loss"),
        "val_loss": latest(records, "val_loss"),
    }


def cost_share(records: Sequence[DecisionRecord]) -> dict[int, float]:
    """Return the fraction of the cost spent at each batch size, smallest size first.

    Empty when there was no cost, or when it is not known throughout.
    """
    spent: defaultdict[int, float] = defaultdict(float)
    before = 0.0
    for record in records:
        spent[record.batch_size_before] += record.cost - before
        before = record.cost
    total = sum(spent.values())
    if not (math.isfinite(total) and total > 0):
        return {}
    return {size: spent[size] / total for size in sorted(spent) if spent[size] > 0}


def latest(records: Sequence[DecisionRecord], signal: str) -> float | None:
    """Return the last measured value of a signal, or None."""
    for record in reversed(records):
        value = record.signals.get(signal)
        if isinstance(value, float) and math.isfinite(value):
            return value
    return None


def finite(value: float) -> float | None:
    """Return the number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None


def _held_back(record: DecisionRecord) -> bool:
    """True when less or other than the request was applied, beyond rounding to a whole size."""
    wanted = record.batch_size_before * 2.0**record.requested_log2_change
    return math.isfinite(wanted) and abs(record.batch_size - wanted) > 0.5
