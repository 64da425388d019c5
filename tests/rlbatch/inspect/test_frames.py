"""Logs as tables, against the lines themselves."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlbatch.errors import MissingExtraError
from rlbatch.inspect import load
from rlbatch.inspect.columns import COLUMNS, field_table
from rlbatch.inspect.frames import write_csv, write_parquet
from rlbatch.inspect.reading import read_logs
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_log, make_record

LINES = [json.loads(line) for line in (EXAMPLE / "decisions.jsonl").read_text().splitlines()]
NAMES = {"step": "step", "samples_seen": "samples", "cost": "cost", "batch_size": "batch_size"}


def test_a_frame_holds_what_the_lines_hold() -> None:
    frame = load(EXAMPLE)

    assert list(frame.columns) == [column.name for column in COLUMNS]
    for field, column in NAMES.items():
        assert frame[column].tolist() == [line[field] for line in LINES]
    losses = [float(line["signals"]["train_loss"]) for line in LINES]
    assert frame["train_loss"].tolist() == losses
    traces = [float(line["signals"]["noise_trace"]) for line in LINES]
    assert [math.isnan(v) for v in frame["noise_trace"]] == [math.isnan(t) for t in traces]
    chosen = [max(line["probabilities"]) for line in LINES[:4]]
    assert frame["probability"].tolist()[:4] == chosen
    assert frame["reasons"].tolist()[0] == LINES[0]["reasons"][0]


def test_units_and_meanings_travel_with_it() -> None:
    frame = load(EXAMPLE, LOGS / "live")

    assert set(frame["run"]) == {"example-log", "live"}
    assert frame.attrs["units"]["noise_scale"] == "samples"
    assert frame.attrs["units"].keys() == frame.attrs["meanings"].keys() == set(frame.columns)
    assert frame.attrs["problems"] == {}
    assert frame["step"].dtype.kind == "i"
    assert frame["noise_scale_is_bound"].dtype.kind == "b"


def test_csv_reads_back(tmp_path: Path) -> None:
    logs = read_logs([EXAMPLE])
    write_csv(logs, tmp_path / "log.csv")

    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    for field, column in NAMES.items():
        assert [float(row[column]) for row in rows] == [float(line[field]) for line in LINES]
    assert rows[0]["noise_scale"] == ""  # not measured yet
    assert rows[-1]["event"] == "end"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "plain", 'a,b\n"c"'])
def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path, text: str) -> None:
    write_csv([make_log(make_record(0, reasons=[text]))], tmp_path / "log.csv")

    with (tmp_path / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["reasons"] in (text, f"'{text}")
    assert row["reasons"][0] not in "=+-@"


def test_parquet_reads_back_with_units(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    huge = make_record(0, batch_size=10**300, reasons=["\ud800"])
    write_parquet([*read_logs([EXAMPLE]), make_log(huge)], tmp_path / "log.parquet")

    table = parquet.read_table(tmp_path / "log.parquet")

    assert table.column("step").to_pylist() == [*(line["step"] for line in LINES), 0]
    field = table.schema.field("noise_scale")
    assert field.metadata[b"unit"] == b"samples"
    assert table.column("batch_size").to_pylist()[-1] == 2**63 - 1


def test_the_documentation_shows_these_columns() -> None:
    page = Path(__file__).parents[3] / "docs" / "log-format.md"

    assert field_table() in page.read_text()


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("pandas", "import rlbatch.inspect; rlbatch.inspect.load('.')"),
        ("pyarrow", "from rlbatch.inspect.frames import write_parquet; write_parquet([], 'x')"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package: str, call: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\ntry:\n {call.replace('; ', chr(10) + ' ')}"
    )
    code += f"\nexcept {MissingExtraError.__name__} as error:\n print(error)"
    code = f"from rlbatch.errors import {MissingExtraError.__name__}\n{code}"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == (
        f"{package} is needed here and is not installed. Run: pip install 'rlbatch[data]'\n"
    )
