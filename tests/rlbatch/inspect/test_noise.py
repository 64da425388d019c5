"""The noise scale against the observation's own averages, and its error against many draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlbatch.inspect.noise import noise_text
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.replay import run_context, signals_of
from rlbatch.inspect.series import points
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.noise_average import NoiseAverage, NoiseScale, noise_scale, of_chunk
from rlbatch.observation import OBSERVATION_NAMES, encode, initial_state
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_record


def averaged(records: Sequence[DecisionRecord]) -> list[NoiseScale]:
    average = NoiseAverage()
    return [average.add(record) for record in records]


MEASURED = {"grad_sqr": 2.0, "grad_sqr_se": 0.2, "noise_trace": 600.0, "noise_trace_se": 30.0}


@pytest.mark.parametrize("folder", [EXAMPLE, LOGS / "live", LOGS / "keras", LOGS / "ddp"])
def test_it_is_what_the_policy_saw(folder: object) -> None:
    log = read_log(str(folder))
    context, state = run_context(log.run), initial_state()
    place = OBSERVATION_NAMES.index("noise_vs_size")
    compared = 0
    for record, scale in zip(log.records, averaged(log.records), strict=True):
        if record.observation is None:
            continue
        signals = signals_of(record, context)
        observation, state = encode(signals, state)
        seen = float(observation[place]) * 10 + math.log2(float(signals.batch_size))
        if math.isfinite(scale.value) and abs(observation[place]) < 1:
            # The observation takes half an error as the least |G|^2, as a bound does here.
            assert math.log2(scale.value) == pytest.approx(seen, abs=2e-5)
            compared += 1
    assert compared > 1


def test_the_error_is_the_spread_of_many_estimates() -> None:
    rng = np.random.default_rng(0)
    grad = rng.normal(2.0, 0.06, 100_000)
    trace = rng.normal(600.0, 30.0, 100_000)

    scale = noise_scale(2.0, 0.06, 600.0, 30.0)

    assert scale.value == 300.0
    assert scale.error == pytest.approx(np.std(trace / grad), rel=0.02)


@pytest.mark.parametrize(
    ("grad", "error", "trace", "expected"),
    [
        (2.0, 0.2, 600.0, "300 ± 34"),
        (0.1, 0.4, 600.0, "> 3,000"),  # 600 / (0.4 / 2)
        (-1.0, 0.4, 600.0, "> 3,000"),
        (2.0, math.nan, 600.0, "300"),
        (0.0, 0.0, 600.0, "-"),
        (2.0, 0.2, -1.0, "-"),
        (math.nan, 0.2, 600.0, "-"),
        (math.inf, 0.2, 600.0, "-"),
    ],
)
def test_what_is_said(grad: float, error: float, trace: float, expected: str) -> None:
    assert noise_text(noise_scale(grad, error, trace, 30.0)) == expected


def test_a_chunk_without_a_measurement_leaves_what_is_known() -> None:
    records = [make_record(0), make_record(1, signals=MEASURED), make_record(2)]

    before, first, after = averaged(records)

    assert math.isnan(before.value)
    assert first == after == of_chunk(records[1])


def test_both_parts_are_averaged_separately() -> None:
    other = {**MEASURED, "grad_sqr": 6.0, "noise_trace": 900.0}
    records = [make_record(0, signals=MEASURED), make_record(1, signals=other)]

    last = averaged(records)[-1]

    assert last.value == pytest.approx((0.7 * 600 + 900) / (0.7 * 2 + 6))
    grad_error = math.hypot(0.7 * 0.2, 0.2) / (0.7 * 2 + 6)
    trace_error = math.hypot(0.7 * 30, 30) / (0.7 * 600 + 900)
    assert last.error == pytest.approx(last.value * math.hypot(grad_error, trace_error))


def test_points_carry_it() -> None:
    log = read_log(EXAMPLE)

    assert repr([p.noise for p in points(log)]) == repr(averaged(log.records))
