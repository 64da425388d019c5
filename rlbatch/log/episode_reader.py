"""Reads the episode log of a run, complete or not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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


def read_episode(folder: str | os.PathLike[str]) -> Episode:
    """Read a log, also one that is being written.

    Raises:
        EpisodeLogError: There is no log, it is of another kind or schema version, or a line other
            than the last is damaged; the message names the file, the line and what to do.
    """
    path = Path(folder)
    run = _read_header(path)
    lines_path = path / DECISIONS_FILE
    try:
        content = lines_path.read_bytes()
    except FileNotFoundError:  # the writer died before its first line
        return Episode(run, ())
    except OSError as error:
        raise EpisodeLogError(f"Cannot read {lines_path}: {error.strerror or error}.") from error
    *lines, rest = content.split(b"\n")  # a line counts only with its newline
    records: list[DecisionRecord] = []
    for number, line in enumerate(lines):
        try:
            record = DecisionRecord.from_json(line)
            if record.index != number:
                raise EpisodeLogError(f"expected index {number}, got {record.index}")
        except EpisodeLogError as error:
            last = number == len(lines) - 1 and not rest
            if last and not _is_json(line):  # a block that never reached the disk
                return Episode(run, tuple(records), torn=True)
            raise EpisodeLogError(
                f"{lines_path}, line {number + 1} is damaged: {error}. The lines before it are "
                "good: to go on from there, remove this line and all after it "
                f"(head -n {number})."
            ) from error
        records.append(record)
    return Episode(run, tuple(records), torn=bool(rest))


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
