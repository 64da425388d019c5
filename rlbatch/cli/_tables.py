"""Tables that fit a terminal: no name is cut off, and no number."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_FRAME = 3  # columns beside each cell: two of air, and a line


def table_or_blocks(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[bool],
    width: int,
) -> Table | Group:
    """Return a table, or where the terminal is too narrow for one, a block of lines for each row.

    Args:
        heads: Headings of the columns; the first column holds names.
        rows: Cells.
        numbers: Which columns are aligned to the right.
        width: Columns of the terminal.
    """
    widths = fitting_widths([heads, *rows], width - 1 - _FRAME * len(heads))
    if widths is None:
        return _blocks(heads, rows)
    table = Table()
    for head, number, room in zip(heads, numbers, widths, strict=True):
        justify = "right" if number else "left"
        table.add_column(Text(head), justify=justify, width=room, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets are no markup
    return table


def fitting_widths(cells: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return widths of columns that take no more than `room`, or None if there are none.

    The widest give way first. Names, in the first column, stay on one line; other texts are folded
    between words only.

    Args:
        cells: Rows, the headings among them.
        room: Terminal columns for all cells.
    """
    columns = list(zip(*cells, strict=True))
    widths = [max(cell_len(cell) for cell in column) for column in columns]
    words = [
        max((cell_len(word) for cell in column for word in cell.split()), default=0)
        for column in columns
    ]
    words[0] = max(words[0], *(cell_len(row[0]) for row in cells[1:]), 0)
    while sum(widths) > room:
        loose = [place for place, least in enumerate(words) if widths[place] > least]
        if not loose:
            return None
        widths[max(loose, key=lambda place: widths[place])] -= 1
    return widths


def _blocks(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    lines: list[Text | Padding] = []
    for row in rows:
        lines.append(Text(row[0], style="bold"))
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if cell:
                lines.append(Padding(Text(f"{head}: {cell}" if head else cell), (0, 0, 0, 2)))
    return Group(*lines)
