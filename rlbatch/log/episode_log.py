"""The log of a run: a folder that survives crashes.

    run.json          what ran; written once, atomically
    decisions.jsonl   one line a decision, appended as it happens
    events.out...     the same as TensorBoard curves, where tensorboard is installed

A line reaches the operating system before `EpisodeLog.write` returns, so that a killed process
loses nothing. A machine that loses power may leave a torn last line: readers leave it out, and
resuming cuts it off.
"""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlbatch.errors import EpisodeLogError
from rlbatch.files import lock_folder, unlock, write_all, write_atomically
from rlbatch.log.decision_record import DecisionRecord, Event, dumps
from rlbatch.log.episode_reader import (
    DECISIONS_FILE,
    FORMAT,
    RUN_FILE,
    SCHEMA_VERSION,
    Episode,
    EpisodeLines,
    read_episode,
)
from rlbatch.log.tensorboard_events import TensorBoardEvents

__all__ = ["DecisionRecord", "Episode", "EpisodeLog", "Event", "read_episode"]

# Which log of this process writes to a folder: the lock keeps only other processes away.
_WRITERS: weakref.WeakValueDictionary[Path, EpisodeLog] = weakref.WeakValueDictionary()


class EpisodeLog:
    """Appends the decisions of one run to a folder.

    Args:
        folder: Where to write; made if missing.
        run_info: What ran: task, policy, seed, limits ... (numbers, texts, lists, mappings).
            Written to `run.json`.
        resume: Go on with the log in the folder, if there is one; its `run.json` is kept. Without
            it, a folder that holds a log is refused.
        tensorboard: Also write TensorBoard events, where tensorboard is installed.

    In one process the latest log of a folder writes to it: an earlier one that was not closed, of a
    controller that is gone but not yet collected, is closed as it is.

    Raises:
        EpisodeLogError: The folder holds a log and `resume` is False, it holds something else,
            another process is writing to it, or it cannot be written. `write`, `truncate_to` and
            `close` raise it too.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        run_info: Mapping[str, Any],
        *,
        resume: bool = False,
        tensorboard: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None
        self._lock: int | None = None
        self._events: TensorBoardEvents | None = None
        self._offsets = [0]  # entry n: bytes of the first n lines
        try:
            with self._explained():
                self._start(run_info, resume)
            self._take_over(tensorboard)
        except BaseException:
            self._release()
            raise

    def _start(self, run_info: Mapping[str, Any], resume: bool) -> None:
        """Lock the folder, and begin a log where none is."""
        run, lines = self.folder / RUN_FILE, self.folder / DECISIONS_FILE
        exists = run.exists() or lines.exists()
        if exists and not resume:
            raise EpisodeLogError(
                f"{self.folder} already holds an episode log, which is never overwritten. "
                "Name another folder; or, to continue that run, load its saved state into the "
                "controller before the first step (for EpisodeLog itself: resume=True)."
            )
        header = dumps(_header(run_info), indent=2) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_from_earlier()
        self._lock = lock_folder(self.folder)
        if not exists:
            write_atomically(run, header)
        self._descriptor = os.open(lines, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _take_from_earlier(self) -> None:
        """Close this process's earlier log of the folder: its lock would go with its descriptor."""
        place = self.folder.resolve()
        earlier = _WRITERS.pop(place, None)
        if earlier is not None:
            earlier._release()
        _WRITERS[place] = self

    def _take_over(self, tensorboard: bool) -> None:
        """Read what the log holds and cut off a torn last line."""
        lines = EpisodeLines(self.folder)
        records = self._counted(lines)
        if tensorboard:
            self._restart_events(lines.run, records)
        for _ in records:  # where nothing has drawn them
            pass
        self._cut()

    def _counted(self, lines: EpisodeLines) -> Iterator[DecisionRecord]:
        for record, size in lines:
            self._offsets.append(self._offsets[-1] + size)
            yield record

    @property
    def is_open(self) -> bool:
        """Whether lines can be written; not any more behind `close`, or once opened anew."""
        return self._descriptor is not None

    @property
    def position(self) -> int:
        """Number of lines. Keep it in a checkpoint and give it to `truncate_to` on resume."""
        return len(self._offsets) - 1

    def write(self, record: DecisionRecord) -> None:
        """Append one line; it has reached the operating system when this returns.

        `record.index` must equal `position`. After an error (a full disk) the log is as before.
        """
        if record.index != self.position:
            raise EpisodeLogError(
                f"The next line of {self.folder} has index {self.position}, got a record with "
                f"index {record.index}. Use index=log.position; after loading a checkpoint call "
                "truncate_to first."
            )
        descriptor = self._open_descriptor()
        line = record.to_json().encode() + b"\n"
        with self._explained():
            if os.fstat(descriptor).st_size != self._offsets[-1]:
                self._cut()  # what a failed write left, if it could not be cut off then
            try:
                write_all(descriptor, line)
            except OSError:
                with contextlib.suppress(OSError):
                    self._cut()
                raise
        self._offsets.append(self._offsets[-1] + len(line))
        self._draw(record)

    def truncate_to(self, position: int) -> None:
        """Drop the lines after the first `position`: the run goes on from an earlier checkpoint."""
        self._open_descriptor()
        if not 0 <= position <= self.position:
            raise EpisodeLogError(
                f"The checkpoint was taken after {position} lines, but {self.folder} holds "
                f"{self.position}: going on would leave a gap. Resume from an older checkpoint, "
                "restore the log, or start in a new folder."
            )
        del self._offsets[position + 1 :]
        self._cut()
        if self._events is not None:
            lines = EpisodeLines(self.folder)
            self._restart_events(lines.run, (record for record, _ in lines))

    def flush(self) -> None:
        """Wait for the disk. Call it before a checkpoint that holds `position` is saved."""
        with self._explained():
            os.fsync(self._open_descriptor())

    def close(self) -> None:
        """Flush and close. Closing twice is fine."""
        if self._descriptor is None:
            return
        try:
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise EpisodeLogError(
                f"The log {self.folder} is closed. Open it again: EpisodeLog(..., resume=True)."
            )
        return self._descriptor

    def _cut(self) -> None:
        """Make the file end after the last complete line."""
        with self._explained():
            os.ftruncate(self._open_descriptor(), self._offsets[-1])

    def _restart_events(self, run: Mapping[str, Any], records: Iterable[DecisionRecord]) -> None:
        """Write the curves anew, so that they show what the log holds and nothing else."""
        if self._events is not None:
            self._events.close()
            self._events = None
        with self._explained(), contextlib.suppress(ImportError):
            self._events = TensorBoardEvents(self.folder, records, run)

    def _draw(self, record: DecisionRecord) -> None:
        """Add to the curves. They can be made again from the log, so a failure only ends them."""
        if self._events is None:
            return
        try:
            self._events.write(record)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None
            warnings.warn(
                f"No more TensorBoard curves in {self.folder}: {error.strerror or error}. "
                "The decisions are still logged; the curves come back when the log is resumed.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _release(self) -> None:
        """Close what is open, without waiting for the disk."""
        lock, self._lock = self._lock, None
        descriptor, self._descriptor = self._descriptor, None
        events, self._events = self._events, None
        with self._explained(), contextlib.ExitStack() as stack:  # last in, first out
            if lock is not None:
                stack.callback(unlock, lock)
            if descriptor is not None:
                stack.callback(os.close, descriptor)
            if events is not None:
                stack.callback(events.close)

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        """Turn the operating system's errors into ones that say what to do."""
        try:
            yield
        except OSError as error:
            raise EpisodeLogError(
                f"Cannot write the episode log {self.folder}: {error.strerror or error}. Make "
                "room or permit writing there, or name another folder. What it held is kept."
            ) from error


def _header(run_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `run.json` holds."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    taken = sorted(header.keys() & run_info.keys())
    if taken:
        raise EpisodeLogError(
            f"run_info may not hold {', '.join(taken)}: the log sets it. Rename it."
        )
    versions = {"python": platform.python_version()}
    for package in ("rlbatch", "torch", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {**header, **run_info, "versions": {**versions, **run_info.get("versions", {})}}
