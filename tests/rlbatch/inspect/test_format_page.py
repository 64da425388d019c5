"""The page about the log's format names every field that a log holds."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from rlbatch.log.decision_record import EVENTS, DecisionRecord
from rlbatch.signals.record import RunContext, Signals
from tests.rlbatch.inspect.made import EXAMPLE, LOGS

PAGE = (Path(__file__).parents[3] / "docs" / "log-format.md").read_text()
NAMED = set(re.findall(r"`(?:context\.)?([a-z_0-9]+)`", PAGE))


@pytest.mark.parametrize("kind", [DecisionRecord, RunContext, Signals])
def test_every_field_has_a_row_with_a_unit(kind: type) -> None:
    assert {field.name for field in fields(kind)} <= NAMED
    assert set(EVENTS) <= NAMED
    for row in re.findall(r"(?m)^\| (`.*)\|$", PAGE):
        assert len(row.split("|")) >= 3
        assert all(cell.strip() for cell in row.split("|"))


@pytest.mark.parametrize("folder", [EXAMPLE, LOGS / "live", LOGS / "ddp", LOGS / "keras"])
def test_every_name_in_a_real_log_is_on_the_page(folder: Path) -> None:
    head = json.loads((folder / "run.json").read_text())

    assert set(head) <= NAMED
    for line in (folder / "decisions.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert set(record) | set(record["signals"]) <= NAMED
