"""Reads the episode log of a run, complete or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord

FORMAT = "rlbatch.episode"
SCHEMA_VERSION = 1
RUN_FILE = "run.json"
DECISIONS_FILE = "decisions.jsonl"


@dataclass(frozen=True)
class Episode:
    """A log as read.

    Attributes:
        run: What `run.json` holds: `format`, `schema_version`, `created`, `versions` and what the
            run said of itself.
        records: The decisions, oldest first.
        torn: True when an incomplete last line was left out: the writer is at work, or died in the
            middle.
    """

    run: Mapping[str, Any]
    records: Sequence[DecisionRecord]
    torn: bool = False


class EpisodeLines:
    """The lines of a log, read one by one: a long log need not fit into memory.

    Attributes:
        run: What `run.json` holds.
        torn: Whether an incomplete last line was left out; known when all lines have been read.

    Raises:
        EpisodeLogError: There is no log, or it is of another kind or schema version. While lines
            are read: one other than the last is damaged; the message names the file, the line and
            what to do.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.run = _read_header(Path(folder))
        self.torn = False
        self._path = Path(folder) / DECISIONS_FILE

    def __iter__(self) -> Iterator[tuple[DecisionRecord, int]]:
        """Yield each record, and the bytes of its line with the newline."""
        try:
            with self._path.open("rb") as file:
                yield from self._records(file)
        except FileNotFoundError:  # the writer died before its first line
            return
        except OSError as error:
            raise EpisodeLogError(
                f"Cannot read {self._path}: {error.strerror or error}."
            ) from error

    def _records(self, file: BinaryIO) -> Iterator[tuple[DecisionRecord, int]]:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):  # a line counts only with its newline
                self.torn = True
                return
            try:
                record = DecisionRecord.from_json(line[:-1])
                if record.index != number:
                    raise EpisodeLogError(f"expected index {number}, got {record.index}")
            except EpisodeLogError as error:
                last = not file.read(1)
                if last and not _is_json(line):  # a block that never reached the disk
                    self.torn = True
                    return
                raise EpisodeLogError(
                    f"{self._path}, line {number + 1} is damaged: {error}. The lines before it "
                    "are good: to go on from there, remove this line and all after it "
                    f"(head -n {number})."
                ) from error
            yield record, len(line)


def read_episode(folder: str | os.PathLike[str]) -> Episode:
    """Read a log, also one that is being written.

    Raises:
        EpisodeLogError: As `EpisodeLines` does.
    """
    lines = EpisodeLines(folder)
    records = tuple(record for record, _ in lines)
    return Episode(lines.run, records, lines.torn)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    try:
        header: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        found = "no such folder" if not folder.is_dir() else f"no {RUN_FILE} in it"
        raise EpisodeLogError(
            f"{folder} is no episode log ({found}). Name the folder that a run wrote with --out."
        ) from error
    except OSError as error:
        raise EpisodeLogError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise EpisodeLogError(
            f"{path} is not valid JSON ({error}). Is it an rlbatch log?"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise EpisodeLogError(
            f"{path} was not written by rlbatch (its format is not {FORMAT!r}). "
            "Name the folder that a run wrote with --out."
        )
    version = cast("dict[str, Any]", header).get("schema_version")
    if version != SCHEMA_VERSION:
        raise EpisodeLogError(
            f"{path} has schema version {version!r}; this rlbatch reads version {SCHEMA_VERSION}. "
            'Read it with the rlbatch that wrote it (see its "versions"), or install a newer one.'
        )
    return cast("dict[str, Any]", header)
