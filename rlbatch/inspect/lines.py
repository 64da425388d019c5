"""The lines of a `decisions.jsonl`, read one by one and repaired where that is possible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, cast

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import EVENTS, DecisionRecord

_FIELDS = tuple(field.name for field in fields(DecisionRecord))
_BAD = (EpisodeLogError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_ESSENTIAL = frozenset(("step", "samples_seen", "batch_size"))  # one of them makes a line of a log


class LineReader:
    """Turns bytes into records and counts what was wrong with them.

    Attributes:
        torn: The last line was incomplete and could not be read.
    """

    def __init__(self) -> None:
        """Begin before the first line."""
        self.torn = False
        self._last: DecisionRecord | None = None
        self._number = 0
        self._unreadable: list[int] = []
        self._repaired: list[int] = []
        self._replaced: list[int] = []
        self._gaps = 0

    def read(self, lines: Iterable[bytes], *, complete: bool = True) -> Iterator[DecisionRecord]:
        """Yield the records.

        Args:
            lines: With their newlines, as a file that was opened for bytes gives them; the last
                one may be without.
            complete: The file ends here: a rest without a newline is read, too, if it can be.
        """
        for line in lines:
            whole = line.endswith(b"\n")
            if not (whole or (complete and line.strip())):
                continue
            self._number += 1
            record = self._record(line)
            if record is not None:
                yield record
            elif not whole:
                self.torn = True
            elif line.strip():
                self._unreadable.append(self._number)

    def problems(self) -> list[str]:
        """Return what was wrong, a sentence each."""
        found: list[str] = []
        if self._unreadable:
            found.append(f"{_lines(self._unreadable)} cannot be read and {_are(self._unreadable)}.")
        if self._repaired:
            found.append(f"{_lines(self._repaired)} had missing or wrong fields, left out here.")
        if self._replaced:
            found.append(f"{_lines(self._replaced)} held bytes that are no UTF-8, shown as \ufffd.")
        if self._gaps:
            found.append("Lines are missing or stand in the wrong order.")
        if self.torn:
            found.append("The last line is incomplete: the run is writing, or was killed.")
        return found

    def _record(self, line: bytes) -> DecisionRecord | None:
        text = line.decode("utf-8", errors="replace")
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        values = cast("dict[str, Any]", content)
        record = self._made(values)
        if record is None:
            return None
        if "\ufffd" in text:
            self._replaced.append(self._number)
        expected = 0 if self._last is None else self._last.index + 1
        self._gaps += record.index not in (expected, 0)
        self._last = record
        return record

    def _made(self, values: Mapping[str, Any]) -> DecisionRecord | None:
        known = {name: values[name] for name in _FIELDS if name in values}
        try:
            return DecisionRecord(**known)
        except _BAD:
            pass
        record = self._repaired_record(known)
        if record is not None:
            self._repaired.append(self._number)
        return record

    def _repaired_record(self, known: Mapping[str, Any]) -> DecisionRecord | None:
        """Return a record of the fields that are right, the others as in the line before."""
        base = self._base()
        taken: set[str] = set()
        for name, value in known.items():
            try:
                DecisionRecord(**{**base, name: value})
            except _BAD:
                if name == "event" and isinstance(value, str):  # of a later version
                    base["reasons"] = (f"event {value!r}", *base.get("reasons", ()))
                elif name == "signals" and isinstance(value, dict):
                    base["signals"] = _right_signals(cast("dict[str, Any]", value), base)
                continue
            taken.add(name)
            before = base.get("reasons", ()) if name == "reasons" else ()
            base[name] = [*before, *value] if name == "reasons" else value
        return DecisionRecord(**base) if taken & _ESSENTIAL else None

    def _base(self) -> dict[str, Any]:
        last = self._last
        return {
            "index": 0 if last is None else last.index + 1,
            "event": EVENTS[0],
            "step": 0 if last is None else last.step,
            "effective_step": None,
            "epoch": float("nan"),
            "samples_seen": 0 if last is None else last.samples_seen,
            "cost": float("nan"),
            "batch_size_before": 1 if last is None else last.batch_size,
            "batch_size": 1 if last is None else last.batch_size,
        }


def _right_signals(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    right: dict[str, Any] = {}
    for name, value in values.items():
        try:
            trial: dict[str, Any] = {**base, "signals": {name: value}}
            DecisionRecord(**trial)
        except _BAD:
            continue
        right[name] = value
    return right


def _lines(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"Line {numbers[0]}"
    shown = ", ".join(map(str, numbers[:4]))
    return f"{len(numbers)} lines ({shown}{', ...' if len(numbers) > 4 else ''})"


def _are(numbers: list[int]) -> str:
    return "is left out" if len(numbers) == 1 else "are left out"
