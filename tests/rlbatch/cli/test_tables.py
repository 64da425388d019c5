"""Tables fit the terminal, and no name or number is cut off."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from rich.console import Console

from rlbatch.cli._tables import fitting_widths, table_or_blocks

HEADS = ["task", "default batch size", "what it is"]
ROWS = [
    ["tabular-classification-sgd", "64", "a network of two layers"],
    ["digits", "1024", "pictures"],
]


def printed(width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table_or_blocks(HEADS, ROWS, [False, True, False], width))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [160, 80, 70, 60, 55, 40, 30])
def test_every_name_and_number_is_whole_and_no_line_too_long(width: int) -> None:
    lines = printed(width)

    assert all(len(line) <= width for line in lines)
    shown = "\n".join(lines)
    assert "…" not in shown
    words = {word for row in ROWS for cell in row for word in cell.split()}
    assert words <= set(shown.replace("│", " ").split())


def test_a_table_becomes_blocks_only_where_it_cannot_stand() -> None:
    assert printed(60)[0].startswith("┏")
    assert printed(40)[:2] == ["tabular-classification-sgd", "  default batch size: 64"]


def test_the_widest_column_gives_way_first() -> None:
    assert fitting_widths([["a", "one two three", "x y"]], 30) == [1, 13, 3]
    assert fitting_widths([["a", "one two three", "x y"]], 12) == [1, 8, 3]
    assert fitting_widths([["a", "one two three", "x y"]], 7) == [1, 5, 1]
    assert fitting_widths([["a", "one two three", "x y"]], 6) is None
