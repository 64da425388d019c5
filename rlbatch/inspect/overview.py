"""The summary of a run, and of several beside each other, as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rlbatch.inspect.comparison import Comparison
from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.series import run_text
from rlbatch.inspect.summary import summarize
from rlbatch.inspect.text import NO_VALUE, compact, number, printable

_LABEL = 13  # columns
_MOST = 6  # interventions that are listed
_LEAST_NAME = 8  # columns of a run's name in a table
_OPEN = "no end in the log: the run goes on, or its process was killed"


def title(log: RunLog) -> str:
    """Return what ran, on one line."""
    parts = [
        f"{key} {printable(value, 60)}"
        for key in ("task", "policy", "seed", "lr_coupling")
        if (value := run_text(log.run, key)) is not None
    ]
    return f"{printable(log.name, 80)}: {', '.join(parts) or 'a run that does not say what it is'}"


def summary_lines(log: RunLog, width: int) -> list[str]:
    """Return a run in a few lines."""
    lines = [line for problem in log.problems for line in _folded("note", problem, width)]
    for name, value in summary_rows(log).items():
        lines += _folded(name, value, width)
    return lines


def summary_rows(log: RunLog) -> dict[str, str]:
    """Return what a reader wants first of a run, by label; safe to print."""
    summary = summarize(log)
    unit = printable(summary["cost_unit"], 40)
    return {
        "outcome": printable(summary["outcome"] or _OPEN),
        "loss": _losses(summary),
        "cost": f"{number(summary['cost'])} {unit if unit != 'cost' else ''}".rstrip(),
        "samples": f"{summary['samples']:,} in {summary['steps']:,} steps"
        + ("" if summary["epochs"] is None else f", {number(summary['epochs'])} epochs"),
        "batch size": _range(summary, "batch_size", summary["batch_size_first"]),
        "learning rate": _between(summary["learning_rate_min"], summary["learning_rate_max"]),
        "noise scale": _noise(summary),
        "decisions": _decisions(summary),
        "cost by size": ", ".join(
            f"{int(size):,}: {share:.0%}" for size, share in summary["cost_share"].items()
        )
        or NO_VALUE,
        **_interventions(summary),
    }


def _losses(summary: Mapping[str, Any]) -> str:
    target = summary["target_loss"]
    samples = summary["target_samples"]
    when = "" if samples is None else f" reached after {samples:,} samples"
    told = "" if target is None else f" (target {number(target)}{when})"
    train, val = number(summary["train_loss"]), number(summary["val_loss"])
    return f"training {train}, validation {val}{told}"


def _range(summary: Mapping[str, Any], name: str, first: int | None) -> str:
    if first is None:
        return NO_VALUE
    low, high = summary[f"{name}_min"], summary[f"{name}_max"]
    return f"{first:,} at first, {summary[f'{name}_final']:,} at last, {low:,} to {high:,}"


def _between(low: float | None, high: float | None) -> str:
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _noise(summary: Mapping[str, Any]) -> str:
    scale, error = summary["noise_scale"], summary["noise_scale_se"]
    if scale is None:
        return "not measured"
    least = "at least " if summary["noise_scale_is_bound"] else ""
    return f"{least}{number(scale)} samples at last" + (
        "" if error is None else f" (standard error {compact(error)})"
    )


def _decisions(summary: Mapping[str, Any]) -> str:
    events: Mapping[str, int] = summary["events"]
    others = [
        f"{count} {name.replace('_', ' ')}"
        for name, count in events.items()
        if name not in ("decision", "end")
    ]
    made = f"{events.get('decision', 0):,}, {summary['changes']:,} changed the batch size"
    return ", ".join([made, f"{summary['held_back']:,} held back", *others])


def _interventions(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what the guard or a limit changed, the last ones."""
    found: Sequence[Mapping[str, Any]] = summary["interventions"][-_MOST:]
    rows: dict[str, str] = {}
    for place, item in enumerate(found):
        asked = "" if item["asked"] is None else f" (asked {number(round(item['asked']))})"
        what = f"{item['batch_size_before']:,} > {item['batch_size']:,}{asked}"
        why = "; ".join(printable(reason) for reason in item["reasons"])
        event = item["event"].replace("_", " ")
        label = "held back" if place == 0 else " " * (place + 1)
        rows[label] = f"step {item['step']:,}, {event} {what}: {why}"
    return rows


def _folded(label: str, text: str, width: int) -> list[str]:
    room = max(width - _LABEL - 2, 20)
    lines = textwrap.wrap(text, room) or [""]
    first = f"{label.strip():<{_LABEL}}  {lines[0]}"
    return [first, *(" " * (_LABEL + 2) + line for line in lines[1:])]


def comparison_lines(comparison: Comparison, width: int) -> list[str]:
    """Return several runs beside each other: totals, losses at equal spending, where they part."""
    lines: list[str] = []
    for table in comparison.tables:
        lines += [printable(table.title), *_grid(table.columns, table.rows, width), ""]
    lines += [
        line for text in comparison.partings for line in textwrap.wrap(printable(text), width)
    ]
    return lines


def grid_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return a table; the last column is cut off where space is short."""
    cells = [[printable(cell, 200) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns) - 1)]
    lines = [
        "  ".join([*(cell.rjust(size) for cell, size in zip(row, widths, strict=False)), row[-1]])
        for row in cells
    ]
    return [_cut(line, width) for line in [lines[0], "-" * width, *lines[1:]]]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return a table; the first column holds names and gives way where space is short.

    Columns that do not fit beside the others stand below them, with the names again.
    """
    cells = [[printable(cell, 200) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines: list[str] = []
    rest = list(range(1, len(columns)))
    while rest or not lines:
        taken = rest[:1]
        for place in rest[1:]:
            if _LEAST_NAME + sum(widths[at] + 2 for at in [*taken, place]) > width:
                break
            taken.append(place)
        rest = rest[len(taken) :]
        lines += [*([""] if lines else []), *_part(cells, widths, taken, width)]
    return lines


def _part(
    cells: Sequence[Sequence[str]], widths: Sequence[int], taken: Sequence[int], width: int
) -> list[str]:
    """Return the names and some columns, with a line below the headings."""
    others = sum(widths[place] + 2 for place in taken)
    name = max(min(widths[0], width - others), 4)
    lines = [
        "  ".join(
            [
                _shortened(row[0], name).ljust(name),
                *(row[place].rjust(widths[place]) for place in taken),
            ]
        )[:width].rstrip()
        for row in cells
    ]
    return [lines[0], "-" * min(width, name + others), *lines[1:]]


def _shortened(name: str, width: int) -> str:
    """Return the end of a name, by which runs differ."""
    return name if len(name) <= width else "~" + name[len(name) - width + 1 :]
