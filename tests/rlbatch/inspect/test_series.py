"""What follows from a line, against closed forms and the observation's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlbatch import observation
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.series import (
    chosen_probability,
    cost_unit,
    points,
    step_cost_at,
    step_cost_curve,
)
from tests.rlbatch.inspect.made import CONTEXT, CURVE, EXAMPLE, make_log, make_record

GRID = (-1.0, 0.0, 1.0)
SIGNALS = {
    "grad_sqr": 1.0,
    "grad_sqr_se": 0.01,
    "noise_trace": 192.0,
    "noise_trace_se": 1.0,
    "schedule_factor": 0.5,
    "step_cost_curve": CURVE,
}


def test_a_change_whose_numbers_are_known() -> None:
    record = make_record(
        1, batch_size=128, requested_log2_change=2.0, learning_rate_factor=2.0, signals=SIGNALS
    )

    (point,) = points(make_log(record))

    assert point.noise.value == 192.0
    assert point.efficiency == 0.75  # 192 / (192 + 64)
    assert point.throughput == 16.0  # a step of 64 costs 4
    assert point.extra_cost == 1.0  # one of 128 costs 8
    assert point.learning_rate == pytest.approx(0.1)  # 0.1 x 2 x 0.5
    assert point.asked == 256.0
    assert (point.changed, point.held_back, point.is_guard) == (True, True, False)


@pytest.mark.parametrize("size", [1, 3, 16, 100, 65_536])
def test_the_cost_of_a_step_is_the_observations(size: int) -> None:
    for record in read_log(EXAMPLE).records[:5]:
        curve = np.asarray(record.signals["step_cost_curve"])
        expected = observation.step_cost_at(curve, np.asarray(math.log2(size)))
        assert math.log2(step_cost_at(step_cost_curve(record), size)) == pytest.approx(
            float(expected)
        )


def test_a_note_has_the_rate_of_the_line_before() -> None:
    decided = make_record(0, batch_size=128, learning_rate_factor=2.0, signals=SIGNALS)
    end = make_record(1, event="end", batch_size_before=128, batch_size=128)

    assert [p.learning_rate for p in points(make_log(decided, end))] == [0.1, 0.1]


@pytest.mark.parametrize(
    "changes",
    [
        {"requested_log2_change": math.inf},
        {"requested_log2_change": 1e308},
        {"signals": {"step_cost_curve": [math.nan] * 17}},
        {"signals": {"step_cost_curve": [1e300, -1e300]}},
        {"signals": {"step_cost_curve": 3.0, "grad_sqr": [1.0]}},
        {"signals": {"grad_sqr": 1e200, "grad_sqr_se": 1e200, "noise_trace": 1e300}},
        {"learning_rate_factor": math.nan, "batch_size": 10**300},
    ],
)
def test_strange_numbers_are_no_errors(changes: dict[str, object]) -> None:
    assert len(points(make_log(make_record(0, **changes), make_record(1)))) == 2


@pytest.mark.parametrize(
    ("grid", "expected"), [(GRID, 0.1), (None, math.nan), ((0.0,), math.nan), ((1, 2, 3), math.nan)]
)
def test_the_probability_is_that_of_the_request(
    grid: tuple[float, ...] | None, expected: float
) -> None:
    down = make_record(0, requested_log2_change=-1.0, probabilities=[0.1, 0.2, 0.7])

    assert chosen_probability(down, grid) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("weights", "unit"),
    [
        ((1.0, 0.0, 0.0), "s"),
        ((0.0, 1.0, 0.0), "samples"),
        ((0.0, 0.0, 1.0), "J"),
        ((0.5, 0.0, 0.5), "0.5 s + 0.5 J"),
        ((0.0, 0.0, 0.0), "cost"),
    ],
)
def test_the_unit_of_costs(weights: tuple[float, float, float], unit: str) -> None:
    names = ("weight_seconds", "weight_samples", "weight_joules")

    assert cost_unit({"context": {**CONTEXT, **dict(zip(names, weights, strict=True))}}) == unit
