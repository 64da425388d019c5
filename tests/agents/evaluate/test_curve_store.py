from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from rlbatch.agents.evaluate.curve_store import (
    CurveKey,
    CurveStore,
    append_line,
    cut_torn_line,
    read_lines,
)
from rlbatch.envs.fixed_run import Curve
from rlbatch.errors import ConfigurationError

KEY = CurveKey("task", 0, "sqrt", 8, "{}", None, 0.3)
CURVE = Curve((1, 2), (8, 16), (0.5, math.nan), diverged=True)


def test_a_curve_comes_back_as_it_was(tmp_path: Path) -> None:
    CurveStore(tmp_path / "c.jsonl").put(KEY, CURVE)

    found = CurveStore(tmp_path / "c.jsonl").get(KEY)

    assert found is not None
    assert math.isnan(found.val_loss[1])
    assert replace(found, val_loss=()) == replace(CURVE, val_loss=())
    assert found.val_loss[0] == 0.5


def test_every_part_of_the_key_tells_curves_apart(tmp_path: Path) -> None:
    store = CurveStore(tmp_path / "c.jsonl")
    store.put(KEY, CURVE)

    for change in (
        {"task": "other"},
        {"seed": 1},
        {"coupling": "none"},
        {"batch_size": 4},
        {"cadence": "{1}"},
        {"planned_steps": 3},
        {"target": None},
        {"wall": True},
    ):
        assert store.get(replace(KEY, **change)) is None


def test_the_last_of_several_lines_counts(tmp_path: Path) -> None:
    store = CurveStore(tmp_path / "c.jsonl")
    store.put(KEY, CURVE)
    longer = Curve((1, 2, 3), (8, 16, 24), (0.5, 0.4, 0.3), reached=True)
    store.put(KEY, longer)

    assert CurveStore(tmp_path / "c.jsonl").get(KEY) == longer


def test_a_torn_last_line_is_left_out_and_can_be_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')

    assert read_lines(path) == [{"a": 1}]
    cut_torn_line(path)
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')

    with pytest.raises(ConfigurationError, match="line 2 is damaged"):
        read_lines(path)


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"a": 1})

    with pytest.raises(ConfigurationError, match="does not hold learning curves"):
        CurveStore(path)
