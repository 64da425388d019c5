"""What the terminal shows of a log, read back from the printed text."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode

pytest.importorskip("rich")

from rich.console import Console
from rich.table import Table

from rlbatch.inspect.table import chosen_probability, render_decisions, render_summary

GRID = [-1.0, 0.0, 1.0]


def make_record(index: int, **changes: Any) -> DecisionRecord:
    values: dict[str, Any] = {
        "index": index,
        "event": "decision",
        "step": 1000 * index,
        "effective_step": None,
        "epoch": 0.0,
        "samples_seen": 64_000 * index,
        "cost": 0.5 * index,
        "batch_size_before": 64,
        "batch_size": 64,
    }
    return DecisionRecord(**{**values, **changes})


CHANGE = make_record(
    1,
    batch_size=128,
    requested_log2_change=1.0,
    probabilities=[0.1, 0.2, 0.7],
    signals={"train_loss": 0.12345},
    reasons=["noise is high", "[/red] rate limit"],
)


def printed(table: Table) -> list[list[str]]:
    """Return the cells of every printed line."""
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.split("│") if cell.strip()] for line in lines]


def test_a_row_shows_the_decision() -> None:
    episode = Episode({"task": "digits", "action_grid": GRID}, (make_record(0), CHANGE))

    lines = printed(render_decisions(episode))

    assert ["task digits"] in lines
    assert ["0", "decision", "0", "0", "0", "-", "64", "0", "-"] in lines
    row = ["1", "decision", "1,000", "64,000", "0.5", "0.1235", "64 -> 128", "+1.00", "0.70"]
    assert [*row, "noise is high; [/red] rate limit"] in lines


@pytest.mark.parametrize("grid", [None, [0.0], [-2.0, 0.0, 2.0], 3, ["x", 0, 1]])
def test_no_probability_is_shown_that_cannot_be_told(grid: Any) -> None:
    lines = printed(render_decisions(Episode({"action_grid": grid}, (CHANGE,))))

    assert not any("0.70" in cells for cells in lines)
    assert any("+1.00" in cells for cells in lines)


def test_the_probability_is_that_of_the_request_not_the_largest() -> None:
    down = make_record(0, requested_log2_change=-1.0, probabilities=[0.1, 0.2, 0.7])

    assert chosen_probability(down, GRID) == 0.1


def test_only_the_last_rows_when_limited() -> None:
    episode = Episode({}, tuple(make_record(index) for index in range(30)))

    def shown(limit: int | None) -> list[str]:
        lines = printed(render_decisions(episode, limit=limit))
        return [cells[0] for cells in lines if len(cells) > 1 and cells[0].isdigit()]

    assert shown(None) == [str(index) for index in range(30)]
    assert shown(2) == ["28", "29"]
    assert shown(99) == shown(None)
    assert ["28 earlier rows left out"] in printed(render_decisions(episode, limit=2))


def test_a_torn_log_says_so() -> None:
    lines = printed(render_decisions(Episode({}, (CHANGE,), torn=True)))

    assert any("the last line is incomplete" in " ".join(cells) for cells in lines)


def test_numbers_that_are_none_do_not_break_the_table() -> None:
    strange = make_record(0, cost=math.inf, requested_log2_change=math.nan)

    lines = printed(render_decisions(Episode({}, (strange,))))

    assert ["0", "decision", "0", "0", "inf", "-", "64", "+nan", "-"] in lines


def test_the_summary_names_range_changes_and_shares() -> None:
    records = (
        make_record(0, cost=1.0, batch_size=128, requested_log2_change=1.0),
        make_record(1, cost=4.0, batch_size_before=128, batch_size=2048, event="fallback"),
    )

    text = "\n".join(" ".join(cells) for cells in printed(render_summary(Episode({}, records))))

    for expected in ("64 -> 2,048", "64 .. 2,048", "2 in 1 decisions", "1 fallback"):
        assert expected in text
    assert "64: 25%, 128: 75%" in text


def test_an_empty_log_can_be_shown() -> None:
    empty = Episode({}, ())

    assert printed(render_decisions(empty))
    assert printed(render_summary(empty))


def test_without_rich_the_message_names_the_extra() -> None:
    code = "import sys; sys.modules['rich'] = None; import rlbatch.inspect.table"
    command = [sys.executable, "-c", code]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'rlbatch[cli]'" in done.stderr
