"""Several runs beside each other: totals, losses at equal spending, where decisions part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.series import cost_unit, run_text
from rlbatch.inspect.summary import summarize
from rlbatch.inspect.text import compact, number, signal
from rlbatch.log.decision_record import DecisionRecord

Values = NDArray[np.float64]
_SHARES = (0.1, 0.25, 0.5, 1.0)  # of what all runs have spent, at which losses are compared


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first column holds the runs' names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """What several runs have in common and where they part.

    Attributes:
        tables: Totals; losses at equal samples and at equal cost.
        partings: For each run but the first, where its sizes leave the first run's, in words.
        values: The same as plain values.
    """

    tables: tuple[Table, ...]
    partings: tuple[str, ...]
    values: dict[str, Any]


def compare(logs: Sequence[RunLog]) -> Comparison:
    """Compare runs with each other; the first one is what others are said to part from."""
    same_unit = len({cost_unit(log.run) for log in logs}) == 1
    axes: list[tuple[str, Callable[[DecisionRecord], float]]] = [("samples", _samples)]
    if same_unit:
        axes.append(("cost", lambda record: record.cost))
    at_equal = {name: _at_equal(logs, spent) for name, spent in axes}
    partings = [_parting(logs[0], other) for other in logs[1:]]
    values = {
        "runs": [{"run": log.name, **summarize(log)} for log in logs],
        "at_equal": at_equal,
        "partings": [place for _, place in partings],
    }
    notes = [text for text, _ in partings]
    if not same_unit:
        notes.append("The runs' costs have different units and are not compared.")
    tables = [_totals(logs), *(_losses(logs, name, at_equal[name]) for name, _ in axes)]
    return Comparison(tuple(t for t in tables if t.rows), tuple(notes), values)


def loss_at(
    log: RunLog, spent: Callable[[DecisionRecord], float], most: float, kind: str = "val_loss"
) -> float:
    """Return the last loss of a kind that a run had before it spent more; NaN without any."""
    found = math.nan
    for record in log.records:
        if not spent(record) <= most * (1 + 1e-9):
            break
        loss = signal(record, kind)
        found = loss if math.isfinite(loss) else found
    return found


def _samples(record: DecisionRecord) -> float:
    return float(record.samples_seen)


def _at_equal(
    logs: Sequence[RunLog], spent: Callable[[DecisionRecord], float]
) -> list[dict[str, Any]]:
    """Return the losses of all runs at shares of what the shortest has spent.

    Validation losses, where the runs have them: training losses depend on a chunk's batches.
    """
    validated = all(math.isfinite(loss_at(log, spent, math.inf)) for log in logs)
    kind = "val_loss" if validated else "train_loss"
    ends = [_most(log, spent) for log in logs]
    common = min(ends, default=0.0)
    if not (math.isfinite(common) and common > 0):
        return []
    rows: list[dict[str, Any]] = []
    for share in _SHARES:
        losses = [loss_at(log, spent, share * common, kind) for log in logs]
        plain = [loss if math.isfinite(loss) else None for loss in losses]
        rows.append({"spent": share * common, kind: plain})
    return rows


def _most(log: RunLog, spent: Callable[[DecisionRecord], float]) -> float:
    values = [spent(record) for record in log.records]
    return max((value for value in values if math.isfinite(value)), default=0.0)


def _totals(logs: Sequence[RunLog]) -> Table:
    rows: list[tuple[str, ...]] = []
    for log in logs:
        one = summarize(log)
        unit = one["cost_unit"]
        smallest, largest = one["batch_size_min"], one["batch_size_max"]
        rows.append(
            (
                log.name,
                run_text(log.run, "policy") or "-",
                f"{number(one['cost'])}{'' if unit in ('cost', 'samples') else ' ' + unit}",
                compact(one["samples"]),
                compact(one["steps"]),
                number(one["val_loss"]),
                "-" if smallest is None else f"{compact(smallest)}-{compact(largest)}",
                _short_outcome(one["outcome"]),
            )
        )
    columns = ("run", "policy", "cost", "samples", "steps", "val loss", "sizes", "outcome")
    return Table("Runs", columns, tuple(rows))


def _short_outcome(outcome: str | None) -> str:
    """Return `reached` for `target 0.12 reached`: the target stands in the summary."""
    if outcome is None:
        return "no end noted"
    if outcome.startswith("target") and outcome.endswith("reached"):
        return "not reached" if "not reached" in outcome else "reached"
    return outcome[:16].rstrip(", ")


def _losses(logs: Sequence[RunLog], name: str, found: Sequence[dict[str, Any]]) -> Table:
    unit = cost_unit(logs[0].run)
    heads = [compact(row["spent"]) for row in found]
    kind = "val_loss" if found and "val_loss" in found[0] else "train_loss"
    rows = [
        (log.name, *(number(row[kind][place]) for row in found)) for place, log in enumerate(logs)
    ]
    told = f" ({unit})" if name == "cost" and unit != "cost" else ""
    what = "Validation" if kind == "val_loss" else "Training"
    head = f"{what} loss at equal {name}{told}"
    return Table(head, ("run", *heads), tuple(rows) if found else ())


def _parting(first: RunLog, other: RunLog) -> tuple[str, dict[str, Any]]:
    """Return where two runs' sizes part, in words and as values.

    Both are followed by samples: the first number of samples from which on the sizes in force
    differ.
    """
    values: dict[str, Any] = {"run": other.name, "from": first.name, "samples": None}
    if not first.records or not other.records:
        return f"{other.name} or {first.name} holds no decisions.", values
    mine, theirs = _sizes(first), _sizes(other)
    ends = min(_most(first, _samples), _most(other, _samples))
    places = np.union1d(mine[0], theirs[0])
    places = places[places <= ends]
    left, right = _in_force(mine, places), _in_force(theirs, places)
    apart = np.flatnonzero(left != right)
    if not apart.size:
        return f"{other.name} and {first.name} use the same sizes as far as both go.", values
    at, here, there = (int(values[apart[0]]) for values in (places, left, right))
    text = (
        f"{other.name} parts from {first.name} after {at:,} samples: {there:,} instead of {here:,}."
    )
    return text, {**values, "samples": at, "batch_size": there, "instead_of": here}


def _sizes(log: RunLog) -> tuple[Values, Values]:
    """Return samples, and the batch size in force from there on, the start included."""
    samples = [0.0, *(float(r.samples_seen) for r in log.records)]
    sizes = [log.records[0].batch_size_before, *(r.batch_size for r in log.records)]
    return np.array(samples), np.array(sizes, dtype=np.float64)


def _in_force(sizes: tuple[Values, Values], samples: Values) -> Values:
    place = np.searchsorted(sizes[0], samples, side="right") - 1
    return sizes[1][np.maximum(place, 0)]
