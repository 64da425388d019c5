"""What a line of the log holds, and that it is strict JSON which gives back what went in."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import EVENTS, DecisionRecord, dumps

REQUIRED: dict[str, Any] = {
    "index": 0,
    "event": "decision",
    "step": 10,
    "effective_step": 10,
    "epoch": 0.5,
    "samples_seen": 320,
    "cost": 1.5,
    "batch_size_before": 32,
    "batch_size": 64,
}


def make_record(**changes: Any) -> DecisionRecord:
    return DecisionRecord(**{**REQUIRED, **changes})


def strict_loads(text: str) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


numbers = st.floats(allow_nan=True, allow_infinity=True)
records = st.builds(
    make_record,
    event=st.sampled_from(EVENTS),
    effective_step=st.none() | st.integers(0, 10**9),
    cost=numbers,
    requested_log2_change=numbers,
    learning_rate_factor=numbers,
    value=st.none() | numbers,
    observation=st.none() | st.lists(numbers, max_size=4),
    probabilities=st.none() | st.lists(numbers, max_size=4),
    signals=st.dictionaries(
        st.text(max_size=5), numbers | st.lists(numbers, max_size=3), max_size=3
    ),
    reasons=st.lists(st.text(max_size=8), max_size=3),
)


@given(records)
def test_a_line_is_strict_json_and_gives_back_the_record(record: DecisionRecord) -> None:
    line = record.to_json()

    assert "\n" not in line
    strict_loads(line)
    # NaN differs from itself, its repr does not
    assert repr(DecisionRecord.from_json(line)) == repr(record)


def test_not_a_number_is_told_apart_from_absent() -> None:
    content = strict_loads(
        make_record(value=math.nan, cost=-math.inf, signals={"a": math.inf}).to_json()
    )

    assert content["value"] == "NaN"
    assert content["cost"] == "-Infinity"
    assert content["signals"] == {"a": "Infinity"}
    assert strict_loads(make_record().to_json())["value"] is None


def test_numpy_and_torch_numbers_become_plain_ones() -> None:
    record = make_record(
        step=np.int64(7),
        cost=torch.tensor(2.5),
        observation=np.array([0.5, -1.0], dtype=np.float32),
        probabilities=torch.tensor([0.25, 0.75]),
        signals={"loss": np.float32(0.5), "curve": np.arange(2.0)},
    )

    assert record == make_record(
        step=7,
        cost=2.5,
        observation=[0.5, -1.0],
        probabilities=[0.25, 0.75],
        signals={"loss": 0.5, "curve": [0.0, 1.0]},
    )
    assert type(record.step) is int
    assert type(record.signals["loss"]) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event": "party"}, "event must be one of decision, .*got 'party'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number .*got 2.5"),
        ({"step": -1}, "step must be a whole number of 0 or more; got -1"),
        ({"samples_seen": math.inf}, "samples_seen must be a whole number"),
        ({"step": None}, "step must be a number; got None"),
        ({"cost": "1.5"}, "cost must be a number; got the text '1.5'"),
        ({"cost": [1.0, 2.0]}, "cost must be a number"),
        ({"observation": 1.0}, "observation must be a list of numbers"),
        ({"observation": "ab"}, "observation must be a list of numbers"),
        ({"signals": {"loss": "low"}}, "loss must be a number; got the text 'low'"),
        ({"reasons": "because"}, "reasons must be a list of texts"),
    ],
)
def test_what_cannot_be_logged_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeLogError, match=message):
        make_record(**changes)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().step = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"index":0}', "without batch_size, batch_size_before, cost"),
        (json.dumps({**REQUIRED, "signals": 3}), "wrong type"),
        (json.dumps({**REQUIRED, "reasons": 3}), "wrong type"),
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str | bytes, message: str) -> None:
    with pytest.raises(EpisodeLogError, match=message):
        DecisionRecord.from_json(line)


def test_names_of_a_later_version_are_left_out() -> None:
    line = json.dumps({**REQUIRED, "mood": "good"})

    assert DecisionRecord.from_json(line) == make_record()


def test_dumps_takes_numpy_paths_and_nested_things() -> None:
    text = dumps({"a": np.array([[1, 2]]), "b": Path("x/y"), "c": (True, None, math.nan), 3: "ü"})

    assert strict_loads(text) == {
        "a": [[1, 2]],
        "b": "x/y",
        "c": [True, None, "NaN"],
        "3": "ü",
    }


def test_dumps_says_what_it_cannot_take() -> None:
    with pytest.raises(EpisodeLogError, match=r"got Linear .*Convert it first"):
        dumps({"model": torch.nn.Linear(1, 1)})
