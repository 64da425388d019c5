"""Several runs beside each other, against numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlbatch.inspect.comparison import compare
from rlbatch.inspect.overview import comparison_lines
from rlbatch.inspect.reading import RunLog, read_logs
from tests.rlbatch.inspect.made import CONTEXT, EXAMPLE, LOGS, make_log, make_record


def run(name: str, *lines: tuple[int, float, float, int, int], **context: float) -> RunLog:
    """Make a log of (samples, cost, validation loss, batch size before, after)."""
    records = [
        make_record(
            index,
            samples_seen=samples,
            cost=cost,
            signals={"val_loss": loss},
            batch_size_before=before,
            batch_size=after,
        )
        for index, (samples, cost, loss, before, after) in enumerate(lines)
    ]
    return make_log(*records, name=name, policy=name, context={**CONTEXT, **context})


FIRST = run("first", (100, 1.0, 5.0, 32, 32), (200, 2.0, 4.0, 32, 64), (400, 4.0, 3.0, 64, 64))
OTHER = run("other", (100, 2.0, 4.5, 32, 32), (300, 3.0, 2.5, 32, 32), (800, 8.0, 1.0, 32, 16))


def test_losses_at_equal_samples_and_cost() -> None:
    at_equal = compare([FIRST, OTHER]).values["at_equal"]

    # At a tenth, a quarter, a half and all of 400 samples, and of 4.0.
    assert at_equal["samples"] == [
        {"spent": 40.0, "val_loss": [None, None]},
        {"spent": 100.0, "val_loss": [5.0, 4.5]},
        {"spent": 200.0, "val_loss": [4.0, 4.5]},
        {"spent": 400.0, "val_loss": [3.0, 2.5]},
    ]
    assert [row["val_loss"] for row in at_equal["cost"]] == [
        [None, None],
        [5.0, None],
        [4.0, 4.5],
        [3.0, 2.5],
    ]


def test_where_the_sizes_part() -> None:
    comparison = compare([FIRST, OTHER, FIRST])

    assert comparison.values["partings"][0] == {
        "run": "other",
        "from": "first",
        "samples": 200,
        "batch_size": 32,
        "instead_of": 64,
    }
    assert comparison.partings == (
        "other parts from first after 200 samples: 32 instead of 64.",
        "first and first use the same sizes as far as both go.",
    )


def test_runs_that_differ_from_the_start() -> None:
    small = run("small", (100, 1.0, 5.0, 4, 4))

    assert compare([FIRST, small]).values["partings"][0]["samples"] == 0


def test_costs_in_different_units_are_not_compared() -> None:
    samples = run("samples", (100, 100.0, 5.0, 32, 32), weight_seconds=0.0, weight_samples=1.0)

    comparison = compare([FIRST, samples])

    assert list(comparison.values["at_equal"]) == ["samples"]
    assert "different units" in comparison.partings[-1]


def test_without_validations_training_losses_are_compared() -> None:
    records: list[Any] = [make_record(i, signals={"train_loss": 3.0 - i}) for i in range(3)]

    at_equal = compare([make_log(*records), make_log(*records)]).values["at_equal"]

    assert at_equal["samples"][-1]["train_loss"] == [1.0, 1.0]


def test_real_logs_fit_80_columns_and_are_strict_json() -> None:
    logs = read_logs([EXAMPLE, LOGS])

    lines = comparison_lines(compare(logs), 80)

    assert len(logs) == 4
    assert max(map(len, lines)) <= 80
    assert all(any(log.name in line for line in lines) for log in logs)
    json.dumps(compare(logs).values, allow_nan=False)


def test_empty_logs_can_be_compared() -> None:
    assert comparison_lines(compare([make_log(name="a"), make_log(name="b")]), 80)


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_no_column_is_lost_where_space_is_short(width: int) -> None:
    compared = compare([FIRST, OTHER])
    lines = comparison_lines(compared, width)

    assert max(map(len, lines)) <= width
    shown = " ".join(lines).split()
    for table in compared.tables:
        for cell in [*table.columns, *(cell for row in table.rows for cell in row[1:])]:
            assert set(cell.split()) <= set(shown)
