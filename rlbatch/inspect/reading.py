"""Reads whatever can be read of episode logs, and says in a sentence what cannot.

`rlbatch.read_episode` is strict, since a run goes on from what it returns. To look at a log,
nothing has to be perfect: it may be cut, damaged, of a later version, or without a `run.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rlbatch.errors import EpisodeLogError
from rlbatch.inspect.lines import LineReader
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode
from rlbatch.log.episode_reader import DECISIONS_FILE, FORMAT, RUN_FILE, SCHEMA_VERSION

_BENCHMARK = "bench.json"  # of `rlbatch bench`
_LARGEST_HEAD = 16_000_000  # bytes of a run.json; a wrong file is not read whole


@dataclass(frozen=True)
class RunLog(Episode):
    """A log as far as it can be read.

    Attributes:
        name: What to call it beside the others that were read with it.
        folder: Where it lies.
        problems: What is missing or was repaired, a sentence each.
    """

    name: str = ""
    folder: Path = Path()
    problems: tuple[str, ...] = ()


def read_logs(folders: Sequence[str | os.PathLike[str]]) -> list[RunLog]:
    """Read the logs in folders, each under a name of its own.

    Args:
        folders: Folders of logs, folders of such folders, or `decisions.jsonl` files.

    Raises:
        EpisodeLogError: A folder holds no log at all.
    """
    found = [path for folder in folders for path in log_folders(Path(folder))]
    names = _distinct([path.resolve() for path in found])
    return [
        log for path, name in zip(found, names, strict=True) for log in _read_folder(path, name)
    ]


def read_log(folder: str | os.PathLike[str]) -> RunLog:
    """Read the log of one run; of several runs in one file, the last.

    Raises:
        EpisodeLogError: There is none.
    """
    return read_logs([folder])[-1]


def log_folders(path: Path) -> list[Path]:
    """Return the folders of logs that a path stands for.

    Raises:
        EpisodeLogError: There is no log.
    """
    if path.name in (DECISIONS_FILE, RUN_FILE) and path.is_file():
        path = path.parent
    if _holds_log(path):
        return [path]
    if not path.is_dir():
        found = "it is a file" if path.exists() else "no such folder"
        raise EpisodeLogError(
            f"{path} is no episode log ({found}). Name the folder that a run wrote with --out or "
            "log_dir."
        )
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and _holds_log(entry))
    if not inside:
        what = "Name the folder that a run wrote with --out or log_dir."
        if (path / _BENCHMARK).is_file():
            what = f"It is a benchmark's: `rlbatch report {path}` shows its results."
        raise EpisodeLogError(f"{path} is no episode log (no {RUN_FILE} in it). {what}")
    return inside


def _holds_log(path: Path) -> bool:
    return any((path / name).is_file() for name in (RUN_FILE, DECISIONS_FILE))


def _read_folder(folder: Path, name: str) -> list[RunLog]:
    run, problems = _read_head(folder)
    reader = LineReader()
    records = list(reader.read(_lines(folder / DECISIONS_FILE)))
    problems += reader.problems()
    if not run and not records:
        raise EpisodeLogError(
            f"{folder} holds nothing that can be read. {' '.join(problems)} Name another folder."
        )
    runs = _apart(records)
    if len(runs) > 1:
        problems.append(f"The file holds {len(runs)} runs, one behind the other: shown apart.")
    log = RunLog(run, (), reader.torn, name, folder, tuple(problems))
    return [
        replace(log, records=tuple(part), name=name if number == 1 else f"{name} ({number})")
        for number, part in enumerate(runs, start=1)
    ]


def _lines(path: Path) -> Iterator[bytes]:
    """Yield a file's lines one by one: the file of a long log may not fit into memory."""
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:  # the writer died before its first line
        return
    except OSError as error:
        raise EpisodeLogError(f"Cannot read {path}: {error.strerror or error}.") from error


def _read_head(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Return what `run.json` holds, empty where it cannot be read, and what is wrong with it."""
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > _LARGEST_HEAD:
            return {}, [f"{RUN_FILE} is too large to be one; it was not read."]
        text = path.read_bytes().decode("utf-8", errors="replace")
        content: Any = json.loads(text, parse_constant=str)
    except FileNotFoundError:
        return {}, [f"There is no {RUN_FILE}: what ran is unknown."]
    except OSError as error:
        return {}, [f"{RUN_FILE} cannot be read ({error.strerror or error})."]
    except (ValueError, RecursionError):
        return {}, [f"{RUN_FILE} is not valid JSON: what ran is unknown."]
    if not isinstance(content, dict):
        return {}, [f"{RUN_FILE} was not written by rlbatch: what ran is unknown."]
    run = cast("dict[str, Any]", content)
    if run.get("format") != FORMAT:
        return run, [f"{RUN_FILE} was not written by rlbatch (no format {FORMAT!r})."]
    version = run.get("schema_version")
    if version != SCHEMA_VERSION:
        return run, [
            f"The log has schema version {str(version)[:40]}, this rlbatch knows {SCHEMA_VERSION}: "
            "fields that it does not know are left out."
        ]
    return run, []


def _apart(records: Sequence[DecisionRecord]) -> list[list[DecisionRecord]]:
    """Split where the numbering begins anew: two runs were written into one file."""
    runs: list[list[DecisionRecord]] = [[]]
    for record in records:
        if record.index == 0 and runs[-1]:
            runs.append([])
        runs[-1].append(record)
    return runs


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart, and numbers where none do."""
    names = [path.name or str(path) for path in paths]
    for depth in range(2, 12):
        if len(set(names)) == len(names):
            break
        names = [
            "/".join(path.parts[-depth:]) if names.count(name) > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    return list(_numbered(names))


def _numbered(names: Sequence[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} [{seen[name]}]"
