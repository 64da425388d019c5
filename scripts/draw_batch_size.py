"""Draws the picture of docs/batch-size.md from the tables on that page, so that both say the same.

    python scripts/draw_batch_size.py

`scripts/measure_batch_size.py` measures what the tables hold, prints and draws it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from measure_batch_size import Row, count, draw, row  # beside this file

from rlbatch.envs.task import resolve_task

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "batch-size.md"
PICTURE = ROOT / "docs" / "images" / "batch_size.png"
NAME = re.compile(r"`([\w-]+)`")
NUMBER = re.compile(r"[\d,]+(?:\.\d+)?")
Table = list[list[str]]


def main() -> None:
    """Read the page and draw."""
    draw(page_rows(PAGE.read_text(encoding="utf-8")), PICTURE)
    print(PICTURE.relative_to(ROOT))


def page_rows(text: str) -> list[Row]:
    """Return what the page's tables hold; means over seeds stand as if there were one.

    Raises:
        ValueError: The page has other tables.
    """
    noise, steps, losses = (cells(table) for table in re.findall(r"(?m)(?:^\|.*\n)+", text))
    return [*noise_rows(noise), *step_rows(steps), *loss_rows(losses)]


def noise_rows(table: Table) -> Iterator[Row]:
    """Yield the mean squared distances, of which the table has the products with the size."""
    for name, *values in table[1:]:
        for size, value in zip(table[0][1:], values, strict=True):
            found = {"noise": float(value) / int(size)}
            yield row("noise", NAME.findall(name)[0], int(size), 0) | found


def step_rows(table: Table) -> Iterator[Row]:
    """Yield steps and samples to the target, and how far the runs went that did not get there."""
    for task, size, steps, samples in pairs(table):
        head = row("steps", task, size, 0)
        if ">" in samples:
            yield head | {
                "steps": None,
                "samples": None,
                "max_samples": number(samples.partition(">")[2]),
            }
        elif samples:
            yield head | {"steps": number(steps), "samples": number(samples)}


def loss_rows(table: Table) -> Iterator[Row]:
    """Yield losses after the same number of samples."""
    for task, size, train, validation in pairs(table):
        yield row("gap", task, size, 0) | {"train": number(train), "val": number(validation)}


def pairs(table: Table) -> Iterator[tuple[str, int, str, str]]:
    """Yield task, batch size and two cells of a table with two columns for each task."""
    tasks = [NAME.findall(name)[0] for name in table[0][1::2]]
    whole = {task: count(resolve_task(task).train_set) for task in tasks}
    for size, *values in table[1:]:
        for task, first, second in zip(tasks, values[::2], values[1::2], strict=True):
            yield task, whole[task] if size == "all" else int(number(size)), first, second


def cells(table: str) -> Table:
    """Return a table's rows without the line below its head."""
    lines = [line for line in table.splitlines() if not re.fullmatch(r"[|\s:-]+", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def number(cell: str) -> float:
    """Return the first number of a cell.

    Raises:
        ValueError: There is none.
    """
    found = NUMBER.search(cell)
    if found is None:
        raise ValueError(f"Expected a number in the table, got {cell!r}.")
    return float(found[0].replace(",", ""))


if __name__ == "__main__":
    main()
