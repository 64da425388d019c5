"""A log's decisions as lines of text that fit a terminal, 80 columns or more."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlbatch.inspect.noise import noise_text
from rlbatch.inspect.series import Point
from rlbatch.inspect.text import NO_VALUE, compact, count, number, printable, signal
from rlbatch.policy.tools import describe

_WIDE = 120  # columns from which numbers are written out
_TINY = 64  # columns below which only a few numbers are shown
_LEAST_WHY = 20  # columns beside the numbers; else the reasons stand below them
_GAP = 2
_YELLOW, _BOLD, _RESET = "\x1b[33m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class _Column:
    """A column: its heading, least width, and a cell of a decision."""

    title: str
    width: int
    cell: Callable[[Point], str]


def _loss(name: str, show: Callable[[float], str]) -> Callable[[Point], str]:
    return lambda point: show(signal(point.record, name))


def _sizes(point: Point) -> str:
    before, after = point.record.batch_size_before, point.record.batch_size
    return _size(before) if before == after else f"{_size(before)}>{_size(after)}"


def _size(size: int) -> str:
    return str(size) if size < 100_000 else compact(size)


def _asked(point: Point) -> str:
    change = point.record.requested_log2_change
    if not math.isfinite(change):
        return str(change)
    return "=" if describe(change) == "stay" else describe(change)


def _asked_size(point: Point) -> str:
    return NO_VALUE if math.isnan(point.asked) else count(round(point.asked), short=False)


def _probability(point: Point) -> str:
    return NO_VALUE if math.isnan(point.probability) else f"{point.probability:.2f}"


_NARROW = (
    _Column("step", 4, lambda p: count(p.record.step, short=True)),
    _Column("seen", 4, lambda p: count(p.record.samples_seen, short=True)),
    _Column("loss", 6, _loss("train_loss", compact)),
    _Column("val", 6, _loss("val_loss", compact)),
    _Column("noise", 6, lambda p: noise_text(p.noise, short=True)),
    _Column("size", 6, _sizes),
    _Column("ask", 3, _asked),
    _Column("rate", 6, lambda p: compact(p.learning_rate)),
)
_ESSENTIAL = ("step", "loss", "val", "size", "ask")
_BROAD = (
    _Column("step", 6, lambda p: f"{p.record.step:,}"),
    _Column("samples", 7, lambda p: f"{p.record.samples_seen:,}"),
    _Column("cost", 6, lambda p: number(p.record.cost)),
    _Column("loss", 7, _loss("train_loss", number)),
    _Column("val", 7, _loss("val_loss", number)),
    _Column("noise scale", 11, lambda p: noise_text(p.noise)),
    _Column("size", 5, lambda p: f"{p.record.batch_size_before:,}"),
    _Column("asked", 5, _asked_size),
    _Column("applied", 7, lambda p: f"{p.record.batch_size:,}"),
    _Column("rate", 8, lambda p: number(p.learning_rate)),
    _Column("P", 4, _probability),
)


@dataclass(frozen=True)
class DecisionTable:
    """Lays out decisions.

    Attributes:
        width: Columns of the terminal.
        shown: Decisions whose cells tell how wide the columns must be.
        color: Mark changes and what the guard did by terminal colours.
    """

    width: int
    shown: Sequence[Point] = ()
    color: bool = False
    _widths: list[int] = field(default_factory=list[int], init=False, repr=False)

    def __post_init__(self) -> None:
        for column in self._columns:
            cells = [len(column.cell(point)) for point in self.shown]
            self._widths.append(max([column.width, len(column.title), *cells]))

    @property
    def _columns(self) -> tuple[_Column, ...]:
        if self.width < _TINY:
            return tuple(column for column in _NARROW if column.title in _ESSENTIAL)
        return _BROAD if self.width >= _WIDE else _NARROW

    @property
    def _room(self) -> int:
        """Columns that are left for the reasons."""
        return self.width - sum(self._widths) - self._gap * len(self._widths)

    @property
    def _gap(self) -> int:
        narrow = sum(self._widths) + _GAP * len(self._widths) + _LEAST_WHY > self.width
        return 1 if narrow else _GAP

    def head(self) -> list[str]:
        """Return the headings and a line below them."""
        titles = self._joined([column.title for column in self._columns])
        if self._room >= _LEAST_WHY:
            titles += " " * self._gap + "why"
        return [titles, "-" * min(self.width, max(len(titles), self.width))]

    def rows(self, points: Iterable[Point]) -> Iterator[str]:
        """Yield the lines of decisions."""
        for point in points:
            lines = self._lines(point)
            style = self._style(point) if self.color else ""
            yield from (f"{style}{line}{_RESET}" if style else line for line in lines)

    def _lines(self, point: Point) -> list[str]:
        numbers = self._joined([column.cell(point) for column in self._columns])
        why = self._why(point)
        if not why:
            return [numbers.rstrip()]
        if self._room >= _LEAST_WHY and (len(why) <= self._room or self.width >= _WIDE):
            first, *more = _wrapped(why, self._room)
            indent = " " * (self.width - self._room)
            return [numbers + " " * self._gap + first, *(indent + line for line in more)]
        return [numbers.rstrip(), *("    " + line for line in _wrapped(why, self.width - 4))]

    def _why(self, point: Point) -> str:
        event = "" if point.record.event == "decision" else point.record.event.replace("_", " ")
        reasons = [printable(reason) for reason in point.record.reasons]
        return "; ".join([*([event.upper()] if event else []), *reasons])

    def _style(self, point: Point) -> str:
        if point.is_guard:
            return _YELLOW
        return _BOLD if point.changed else ""

    def _joined(self, cells: Sequence[str]) -> str:
        pairs = zip(cells, self._widths, strict=True)
        return (" " * self._gap).join(cell.rjust(width) for cell, width in pairs)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 8)) or [""]
