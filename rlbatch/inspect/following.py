"""A log that is being written, line by line as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from rlbatch.inspect.lines import LineReader
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_reader import DECISIONS_FILE


def follow(
    folder: Path,
    *,
    every: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[DecisionRecord]]:
    """Yield all lines so far whenever there are more, until the run ends.

    A run that is resumed from an earlier checkpoint cuts its log: then what it holds now is
    yielded, which may be less.

    Args:
        folder: Of the log; its lines may not be there yet.
        every: Seconds between looks.
        sleep: Waits; replaced in tests.
    """
    path, log = folder / DECISIONS_FILE, _Growing()
    while True:
        if path.exists() and log.read(path):
            yield list(log.records)
            if log.records and log.records[-1].event == "end":
                return
        sleep(every)


class _Growing:
    """Whole lines of a file so far; only what is new is read."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.records: list[DecisionRecord] = []
        self._reader, self._offset = LineReader(), 0

    def read(self, path: Path) -> bool:
        """Return whether there are other records than before."""
        if path.stat().st_size < self._offset:
            return self._again(path)
        with path.open("rb") as file:
            file.seek(self._offset)
            lines, newline, _ = file.read().rpartition(b"\n")
        if not newline:
            return False
        new = list(self._reader.read(BytesIO(lines + newline), complete=False))
        if self._offset and new and new[0].index != len(self.records):
            return self._again(path)  # cut, and grown beyond where it was
        self._offset += len(lines) + 1
        self.records += new
        return bool(new)

    def _again(self, path: Path) -> bool:
        self._restart()
        self.read(path)
        return True
