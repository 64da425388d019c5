"""What the page is given, against the log's own numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.inspect.groups import PEOPLES
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.report.data import embedded, run_data
from rlbatch.inspect.series import points
from tests.rlbatch.inspect.made import CURVE, EXAMPLE, LOGS, make_log, make_record

LOG = read_log(EXAMPLE)
DATA = run_data(LOG)


def test_numbers_are_those_of_the_log_to_five_digits() -> None:
    assert DATA["step"] == [record.step for record in LOG.records]
    assert DATA["size"] == [record.batch_size for record in LOG.records]
    for name, signal in (("train", "train_loss"), ("val", "val_loss")):
        for shown, record in zip(DATA[name], LOG.records, strict=True):
            assert shown == pytest.approx(record.signals[signal], rel=1e-4)
    bounds = [point.noise.is_bound for point in points(LOG)]
    assert [error == -1 for error in DATA["error"]] == bounds


def test_reasons_and_events_are_found_by_number() -> None:
    for place, record in enumerate(LOG.records):
        number = DATA["why"]["of"][place]
        assert DATA["why"]["texts"][number] == "; ".join(record.reasons)
        assert DATA["events"][DATA["event"][place]] == record.event


def test_changes_have_sentences_pushes_and_what_would_have_turned_them() -> None:
    changed = [str(i) for i, r in enumerate(LOG.records) if r.batch_size != r.batch_size_before]

    assert list(DATA["words"]) == changed
    assert any("It would have" in text for texts in DATA["words"].values() for text in texts)
    assert set(changed) <= set(DATA["pushes"])
    assert all(len(row) == len(PEOPLES) for row in DATA["pushes"].values())
    assert all(sum(row) == pytest.approx(100, abs=3) for row in DATA["odds"].values())


def test_a_curve_that_stays_is_stored_once() -> None:
    records = [make_record(i, signals={"step_cost_curve": CURVE}) for i in range(5)]

    data = run_data(make_log(make_record(0), *records))

    assert data["curves"] == [tuple(CURVE)]
    assert data["curve"] == [-1, 0, 0, 0, 0, 0]


def test_axes_never_fall() -> None:
    strange = [make_record(i, cost=cost) for i, cost in enumerate((1.0, math.nan, 0.5, math.inf))]

    data = run_data(make_log(*strange))

    assert data["cost"] == [1, 1, 1, 1]


@pytest.mark.parametrize("folder", [EXAMPLE, LOGS / "live", LOGS / "ddp", LOGS / "keras"])
def test_it_is_strict_json(folder: Any) -> None:
    data = run_data(read_log(folder))

    assert json.loads(embedded(data)) == json.loads(json.dumps(data, allow_nan=False))


@given(st.text(max_size=50))
def test_nothing_in_the_json_ends_a_script_element(text: str) -> None:
    shown = embedded([text, "</script><script>alert(1)</script>", "<!--", "\u2028"])

    assert not set("<>&\u2028\u2029") & set(shown)
    assert json.loads(shown)[0] == text
