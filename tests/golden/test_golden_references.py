"""The best fixed sizes are found as recorded, from curves as they were stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden import references

CLOSE = 1e-13  # of the cost: the last bit of a power depends on the processor


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(references.FOUND.read_text())


def test_references_are_found_as_recorded_without_training(
    recorded: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "curves.jsonl"
    shutil.copy(references.CURVES, path)

    found = references.references(path, made=False)
    assert found == pytest.approx(recorded["references"], rel=CLOSE)
    assert path.read_bytes() == references.CURVES.read_bytes()
    reached = {value for name, value in found.items() if name.endswith("reached")}
    assert reached == {True, False}


def test_a_stored_table_of_curves_gives_the_recorded_costs(recorded: dict[str, Any]) -> None:
    costs = references.table_costs(references.TABLE)
    assert costs == pytest.approx(recorded["table"], rel=CLOSE)
    assert len(costs) > 50


def test_the_shipped_curves_are_read_as_recorded(recorded: dict[str, Any], tmp_path: Path) -> None:
    assert references.shipped(tmp_path) == recorded["shipped"]
