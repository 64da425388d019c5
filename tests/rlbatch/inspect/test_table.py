"""What the terminal shows of decisions: every line fits, and nothing is lost."""

from __future__ import annotations

import math
import re

import pytest

from rlbatch.inspect.overview import summary_lines, title
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.series import points
from rlbatch.inspect.table import DecisionTable
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_log, make_record

GRID = [-1.0, 0.0, 1.0]
CHANGE = make_record(
    1,
    batch_size=128,
    requested_log2_change=1.0,
    probabilities=[0.1, 0.2, 0.7],
    signals={"train_loss": 0.12345, "val_loss": 0.5},
    reasons=["noise is high", "[/red] rate limit"],
)
FOLDERS = [EXAMPLE, LOGS / "live", LOGS / "ddp", LOGS / "keras"]


def shown(*records: object, width: int = 160, color: bool = False, **run: object) -> list[str]:
    found = points(make_log(*records, **run))  # type: ignore[arg-type]
    table = DecisionTable(width, found, color=color)
    return [*table.head(), *table.rows(found)]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_line_fits_and_no_reason_is_cut(folder: object, width: int) -> None:
    log = read_log(str(folder))
    found = points(log)
    table = DecisionTable(width, found)
    rows = list(table.rows(found))

    lines = [*table.head(), *rows, *summary_lines(log, width)]
    assert max(map(len, lines)) <= width
    together = re.sub(r"\s+", " ", " ".join(rows))
    for record in log.records:
        for word in " ".join(record.reasons).split():
            assert word in together


def test_a_row_of_a_wide_terminal() -> None:
    lines = shown(make_record(0), CHANGE, action_grid=GRID)

    head = re.sub(r" +", " ", lines[0]).strip()
    assert head == "step samples cost loss val noise scale size asked applied rate P why"
    row = "10 640 0.5 0.1235 0.5 - 64 128 128 0.1 0.70 noise is high; [/red] rate limit"
    assert row in re.sub(r" +", " ", lines[-1])


def test_a_row_of_80_columns() -> None:
    lines = shown(make_record(0), CHANGE, width=80)

    head = re.sub(r" +", " ", lines[0]).strip()
    assert head == "step seen loss val noise size ask rate why"
    assert re.sub(r" +", " ", " ".join(lines[3:])).strip() == (
        "10 640 0.1235 0.5 - 64>128 x2 0.1 noise is high; [/red] rate limit"
    )


def test_changes_and_events_stand_out_where_there_are_colours() -> None:
    rollback = make_record(2, event="rollback", reasons=["guard"])

    plain = shown(make_record(0), CHANGE, rollback)
    colored = shown(make_record(0), CHANGE, rollback, color=True)

    assert "ROLLBACK; guard" in plain[-1]
    assert [line.startswith("\x1b[") for line in colored] == [False] * 3 + [True, True]
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in colored] == plain


def test_numbers_that_are_none_do_not_break_the_table() -> None:
    strange = make_record(0, cost=math.inf, requested_log2_change=math.nan)

    assert "inf" in shown(strange)[-1]
    assert "nan" in shown(strange, width=80)[-1]


def test_the_summary_names_range_changes_shares_and_what_was_held_back() -> None:
    records = (
        make_record(0, cost=1.0, batch_size=128, requested_log2_change=2.0, reasons=["limit"]),
        make_record(1, cost=4.0, batch_size_before=128, batch_size=2048, event="fallback"),
    )

    text = "\n".join(summary_lines(make_log(*records), 160))

    for expected in (
        "64 at first, 2,048 at last, 64 to 2,048",
        "2 changed the batch size, 2 held back, 1 fallback",
        "64: 25%, 128: 75%",
        "step 0, decision 64 > 128 (asked 256): limit",
    ):
        assert expected in text


def test_the_title_names_what_ran() -> None:
    log = make_log(name="first", task="digits", policy="goodput", seed=3)

    assert title(log) == "first: task digits, policy goodput, seed 3"
    assert title(make_log(name="x")) == "x: a run that does not say what it is"


def test_an_empty_log_can_be_shown() -> None:
    assert len(shown(width=80)) == 2
    assert summary_lines(make_log(), 80)
