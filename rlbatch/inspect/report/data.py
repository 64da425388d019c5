"""What the page shows of a run, as JSON that is small and safe within HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlbatch.inspect.explain import Explainer, sentences
from rlbatch.inspect.groups import PEOPLES
from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.report.thinning import is_marked, shown_places, thinned
from rlbatch.inspect.series import (
    Point,
    action_grid,
    context_value,
    cost_unit,
    points,
    run_text,
    step_cost_curve,
)
from rlbatch.inspect.text import printable, signal

_MOST_EXPLAINED = 300  # decisions told in whole sentences
_MOST_TURNED = 60  # decisions for which it is searched what would have turned them
_MOST_PUSHED = 500  # decisions whose observations' pushes are shown
_MOST_CURVES = 200  # curves of step costs
_MOST_REASONS = 5_000  # decisions; with more, only changes and events carry their reasons

_LARGEST = 2**53  # that JavaScript counts exactly

_LABELS = ("task", "policy", "seed", "lr_coupling", "model", "optimizer", "created")


def run_data(log: RunLog) -> dict[str, Any]:
    """Return everything that the page shows of a run. Unknown numbers are None.

    Of a log that is too long for a page some lines are left out; `thinned` says so in a sentence,
    and `places` which ones are there.
    """
    every = points(log)
    places = shown_places(every)
    found = [every[place] for place in places]
    records = [point.record for point in found]
    note = thinned(every, places)
    return {
        "thinned": note,
        "lines": len(every),
        "places": places if note else None,
        "name": printable(log.name, 80),
        "unit": printable(cost_unit(log.run), 40),
        "min": _short(context_value(log.run, "min_batch_size")),
        "max": _short(context_value(log.run, "max_batch_size")),
        "target": _short(context_value(log.run, "target_loss")),
        "grid": _numbers(action_grid(log.run) or ()),
        "step": _ascending(float(r.step) for r in records),
        "samples": _ascending(float(r.samples_seen) for r in records),
        "cost": _ascending(r.cost for r in records),
        "before": [min(r.batch_size_before, _LARGEST) for r in records],
        "size": [min(r.batch_size, _LARGEST) for r in records],
        "asked": _numbers(p.asked for p in found),
        "train": _numbers(signal(r, "train_loss") for r in records),
        "val": _numbers(signal(r, "val_loss") for r in records),
        "rate": _numbers(p.learning_rate for p in found),
        "noise": _numbers(p.noise.value for p in found),
        "error": _numbers(-1.0 if p.noise.is_bound else p.noise.error for p in found),
        "efficiency": _numbers(p.efficiency for p in found),
        "throughput": _numbers(p.throughput for p in found),
        "probability": _numbers(p.probability for p in found),
        **_events(found),
        "why": _reasons(found),
        "odds": _probabilities(found),
        **_curves(found),
        **_explanations(log, every, places),
    }


def run_labels(log: RunLog) -> list[tuple[str, str]]:
    """Return what a run says of itself."""
    return [
        (name.replace("_", " "), printable(value, 80))
        for name in _LABELS
        if (value := run_text(log.run, name)) is not None
    ]


def embedded(value: object) -> str:
    """Return strict JSON that may stand within a script element: no `<`, `>` or `&` in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _explanations(log: RunLog, every: Sequence[Point], places: Sequence[int]) -> dict[str, Any]:
    """Return sentences for changes and events, and the pushes behind decisions."""
    explainer = Explainer(log)
    marked = [at for at, place in enumerate(places) if is_marked(every[place])]
    told = set(marked[:_MOST_EXPLAINED])
    turned = set(marked[:_MOST_TURNED])
    pushed = range(len(places)) if len(places) <= _MOST_PUSHED else marked[:_MOST_PUSHED]
    words: dict[str, list[str]] = {}
    pushes: dict[str, list[float]] = {}
    for at in sorted({*told, *pushed}):
        why = explainer.why(every[places[at]], turning=at in turned)
        if why is not None:
            groups = why.attribution.groups()
            pushes[str(at)] = [round(groups[name], 2) for name in PEOPLES]
        if at in told:
            texts = sentences(log, every, places[at], why)
            words[str(at)] = [text for text in texts if not text.startswith("Pushes:")]
    return {
        "groups": PEOPLES,
        "pushes": pushes,
        "words": words,
        "note": printable(explainer.note, 300),
    }


def _events(found: Sequence[Point]) -> dict[str, Any]:
    names = sorted({point.record.event for point in found})
    codes = {name: code for code, name in enumerate(names)}
    return {
        "events": [name.replace("_", " ") for name in names],
        "event": [codes[point.record.event] for point in found],
    }


def _reasons(found: Sequence[Point]) -> Mapping[str, Any]:
    """Return texts, each once, and for each line the number of its text; -1 for none."""
    every = len(found) <= _MOST_REASONS
    numbers: dict[str, int] = {"": -1}
    places: list[int] = []
    for point in found:
        shown = every or point.changed or point.is_guard or point.record.event == "end"
        text = "; ".join(printable(r, 300) for r in point.record.reasons) if shown else ""
        places.append(numbers.setdefault(text, len(numbers) - 1))
    return {"texts": [text for text in numbers if text], "of": places}


def _probabilities(found: Sequence[Point]) -> dict[str, list[float]]:
    """Return the actions' probabilities of changes, in percent."""
    return {
        str(place): [round(100 * p) if math.isfinite(p) else 0 for p in probabilities]
        for place, point in enumerate(found)
        if point.changed and (probabilities := point.record.probabilities)
    }


def _curves(found: Sequence[Point]) -> dict[str, Any]:
    """Return log2 step costs at 1, 2, 4 ..., each curve once, and which one holds for a line."""
    distinct: dict[tuple[float, ...], int] = {}
    places: list[int] = []
    last = -1
    for place, point in enumerate(found):
        curve = tuple(round(value, 2) for value in step_cost_curve(point.record))
        due = len(distinct) * len(found) <= place * _MOST_CURVES
        if curve and (curve in distinct or due):
            last = distinct.setdefault(curve, len(distinct))
        places.append(last)
    return {"curves": list(distinct), "curve": places}


def _ascending(values: Iterable[float]) -> list[float]:
    """Return an axis: what is unknown, or falls, stays at the value before."""
    axis: list[float] = []
    for value in values:
        before = axis[-1] if axis else 0.0
        known = value if math.isfinite(value) and abs(value) < 1e300 else before
        axis.append(max(_rounded(known, 7), before))
    return axis


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_short(value) for value in values]


def _short(value: float) -> float | None:
    return _rounded(value, 5) if math.isfinite(value) else None


def _rounded(value: float, digits: int) -> float:
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short
