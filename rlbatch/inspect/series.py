"""What a log amounts to, decision by decision: the numbers that tables and pictures show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rlbatch.inspect.text import signal
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode
from rlbatch.noise_average import NoiseAverage, NoiseScale, of_chunk

_SAME = 0.5  # samples: what rounding to a whole batch size may change
_CURVE_SIZES = 17  # batch sizes 1, 2, 4 ... 65,536


@dataclass(frozen=True)
class Point:
    """One line of a log with what follows from it. Unknown numbers are NaN.

    Attributes:
        record: The line.
        noise: Noise scale known by then, in samples.
        chunk_noise: What this chunk alone says of it.
        efficiency: Share of a sample's worth that is left at the chunk's batch size, 0 to 1:
            noise scale / (noise scale + batch size).
        throughput: Samples per unit of cost at the chunk's batch size, from the step-cost curve.
        learning_rate: In force after the decision: base rate x coupling x schedule.
        asked: Batch size that the policy asked for, in samples.
        probability: Of the requested change; NaN for rules.
        extra_cost: Cost of a step at the applied size over that at the size before, minus one.
    """

    record: DecisionRecord
    noise: NoiseScale
    chunk_noise: NoiseScale
    efficiency: float
    throughput: float
    learning_rate: float
    asked: float
    probability: float
    extra_cost: float

    @property
    def changed(self) -> bool:
        """The batch size is another from here on."""
        return self.record.batch_size != self.record.batch_size_before

    @property
    def held_back(self) -> bool:
        """Less or other than the request was applied, beyond rounding."""
        return math.isfinite(self.asked) and abs(self.record.batch_size - self.asked) > _SAME

    @property
    def is_guard(self) -> bool:
        """Something happened that is no ordinary decision."""
        return self.record.event not in ("decision", "end")


class PointMaker:
    """Makes the points of a log's lines, from the first on."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        """Begin before the first line of a run."""
        self._base_rate, self._grid = context_value(run, "learning_rate"), action_grid(run)
        self._average = NoiseAverage()
        self._last: Point | None = None

    def add(self, record: DecisionRecord) -> Point:
        """Return the next line's."""
        point = _point(record, self._average.add(record), self._base_rate, self._grid)
        last = self._last
        if not record.signals and not point.changed and last is not None:
            point = replace(point, learning_rate=last.learning_rate)  # a note says nothing of it
        self._last = point
        return point


def points(episode: Episode) -> list[Point]:
    """Return every line of a log with what follows from it, oldest first."""
    maker = PointMaker(episode.run)
    return [maker.add(record) for record in episode.records]


def _point(
    record: DecisionRecord, scale: NoiseScale, base_rate: float, grid: Sequence[float] | None
) -> Point:
    before = float(record.batch_size_before)
    curve = step_cost_curve(record)
    step_cost = step_cost_at(curve, before)
    schedule = signal(record, "schedule_factor")
    rate = base_rate * record.learning_rate_factor
    return Point(
        record=record,
        noise=scale,
        chunk_noise=of_chunk(record),
        efficiency=scale.value / (scale.value + before) if scale.value > 0 else math.nan,
        throughput=before / step_cost if step_cost > 0 else math.nan,
        learning_rate=rate * (1.0 if math.isnan(schedule) else schedule),
        asked=before * 2.0**record.requested_log2_change
        if abs(record.requested_log2_change) < 64
        else math.nan,
        probability=chosen_probability(record, grid),
        extra_cost=step_cost_at(curve, float(record.batch_size)) / step_cost - 1.0
        if step_cost > 0
        else math.nan,
    )


def step_cost_curve(record: DecisionRecord) -> Sequence[float]:
    """Return log2 of the cost of a step at batch sizes 1, 2, 4 ...; empty where it is unknown."""
    curve = record.signals.get("step_cost_curve")
    known = isinstance(curve, tuple) and len(curve) >= 2 and all(map(math.isfinite, curve))
    return curve[:_CURVE_SIZES] if known and isinstance(curve, tuple) else ()


def step_cost_at(curve: Sequence[float], batch_size: float) -> float:
    """Return the cost of a step, by linear interpolation in log-log; NaN without a curve."""
    if not curve or not batch_size >= 1:
        return math.nan
    place = min(math.log2(batch_size), len(curve) - 1.0)
    lower = min(int(place), len(curve) - 2)
    log_cost = curve[lower] + (curve[lower + 1] - curve[lower]) * (place - lower)
    return 2.0**log_cost if abs(log_cost) < 500 else math.nan


def chosen_probability(record: DecisionRecord, grid: Sequence[float] | None) -> float:
    """Return the probability of the requested change; NaN where it cannot be told."""
    probabilities = record.probabilities
    if grid is None or probabilities is None or len(grid) != len(probabilities):
        return math.nan
    for change, probability in zip(grid, probabilities, strict=True):
        if math.isclose(change, record.requested_log2_change, abs_tol=1e-6):
            return probability
    return math.nan


def action_grid(run: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the policy's actions if `run.json` tells them."""
    grid: Any = run.get("action_grid")
    if not isinstance(grid, list) or len(cast("list[Any]", grid)) > 1000:
        return None
    try:
        return tuple(float(change) for change in cast("list[Any]", grid))
    except (TypeError, ValueError, OverflowError):
        return None


def context_value(run: Mapping[str, Any], name: str) -> float:
    """Return one of the run's constants; NaN where it is unknown."""
    context: Any = run.get("context")
    value: Any = cast("dict[str, Any]", context).get(name) if isinstance(context, dict) else None
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def cost_unit(run: Mapping[str, Any]) -> str:
    """Return the unit of the run's cost: `s`, `samples`, `J`, a mix of them, or `cost`."""
    units = (("seconds", "s"), ("samples", "samples"), ("joules", "J"))
    weights = [(context_value(run, f"weight_{name}"), unit) for name, unit in units]
    parts = [(weight, unit) for weight, unit in weights if weight > 0]
    if len(parts) == 1:
        return parts[0][1]
    return " + ".join(f"{weight:g} {unit}" for weight, unit in parts) or "cost"


def run_text(run: Mapping[str, Any], name: str) -> str | None:
    """Return what `run.json` says of itself under a name, if that is a text or a number."""
    value = run.get(name)
    return str(value) if isinstance(value, str | int | float) else None
