"""What a run's log comes to, as plain values for `--json`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.series import Point, context_value, cost_unit, points
from rlbatch.inspect.text import signal
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode

_NAMED_EVENTS = 20  # that the summary lists


def summarize(episode: Episode) -> dict[str, Any]:
    """Return the run in a few numbers. Everything is strict JSON: unknown numbers are None.

    `cost_share` maps each batch size to the fraction of the cost that was spent in chunks which
    ended with it. A chunk in which a change arrived counts for the size that it started with.
    """
    records, found = episode.records, points(episode)
    sizes = [size for r in records for size in (r.batch_size_before, r.batch_size)]
    rates = [p.learning_rate for p in found if math.isfinite(p.learning_rate)]
    last = records[-1] if records else None
    target = context_value(episode.run, "target_loss")
    reached = first_within(records, target)
    return {
        "task": episode.run.get("task"),
        "policy": episode.run.get("policy"),
        "seed": episode.run.get("seed"),
        "records": len(records),
        "events": dict(Counter(r.event for r in records)),
        "torn": episode.torn,
        "problems": list(episode.problems) if isinstance(episode, RunLog) else [],
        "outcome": outcome(records),
        "steps": last.step if last else 0,
        "samples": last.samples_seen if last else 0,
        "epochs": finite(last.epoch) if last else 0.0,
        "cost": finite(last.cost) if last else 0.0,
        "cost_unit": cost_unit(episode.run),
        "batch_size_first": sizes[0] if sizes else None,
        "batch_size_final": sizes[-1] if sizes else None,
        "batch_size_min": min(sizes, default=None),
        "batch_size_max": max(sizes, default=None),
        "learning_rate_min": min(rates, default=None),
        "learning_rate_max": max(rates, default=None),
        "changes": sum(p.changed for p in found),
        "held_back": sum(p.held_back for p in found),
        "interventions": [intervention(p) for p in interventions(found)[-_NAMED_EVENTS:]],
        "cost_share": {str(size): share for size, share in cost_share(records).items()},
        "target_loss": finite(target),
        "target_samples": reached.samples_seen if reached else None,
        "target_cost": finite(reached.cost) if reached else None,
        "train_loss": latest(records, "train_loss"),
        "val_loss": latest(records, "val_loss"),
        "noise_scale": finite(found[-1].noise.value) if found else None,
        "noise_scale_is_bound": found[-1].noise.is_bound if found else False,
        "noise_scale_se": finite(found[-1].noise.error) if found else None,
    }


def outcome(records: Sequence[DecisionRecord]) -> str | None:
    """Return how the run says that it ended; None while it has not."""
    last = records[-1] if records else None
    return ", ".join(last.reasons) or "ended" if last and last.event == "end" else None


def first_within(records: Sequence[DecisionRecord], target: float) -> DecisionRecord | None:
    """Return the first line whose validation loss is no higher than the target, if there is one."""
    return next((r for r in records if signal(r, "val_loss") <= target), None)


def interventions(found: Sequence[Point]) -> list[Point]:
    """Return where the guard or a limit changed something."""
    return [point for point in found if point.is_guard or point.held_back]


def intervention(point: Point) -> dict[str, Any]:
    """Return one of them as plain values."""
    record = point.record
    return {
        "step": record.step,
        "event": record.event,
        "batch_size_before": record.batch_size_before,
        "batch_size": record.batch_size,
        "asked": finite(point.asked),
        "reasons": list(record.reasons),
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


def latest(records: Sequence[DecisionRecord], name: str) -> float | None:
    """Return the last measured value of a signal, or None."""
    for record in reversed(records):
        value = record.signals.get(name)
        if isinstance(value, float) and math.isfinite(value):
            return value
    return None


def finite(value: float) -> float | None:
    """Return the number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None
