"""Writing files so that a crash leaves them whole, and one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rlbatch.errors import EpisodeLogError

LOCK_FILE = ".lock"


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside a file, which it replaces once it is written.

    Whatever happens, there is the old file or the whole new one, on the disk as well. The temporary
    path has the file's suffix, which some writers insist on.
    """
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether a process that was killed while `replacing` has left this file."""
    return path.name.startswith(".") and ".tmp" in path.name


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either whole or not there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes; a nearly full disk takes some and reports its error at the next call."""
    while content:
        content = content[os.write(descriptor, content) :]


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file in one write, so that processes may share it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """Return a descriptor that keeps other processes from writing to the folder until `unlock`.

    A record lock ends with its process even when forked data-loading workers live on, which `flock`
    would not. It also ends when the process closes *any* descriptor of the locked file, so the file
    is one that nobody else opens.

    Raises:
        EpisodeLogError: Another process holds the lock.
        OSError: The lock file cannot be made.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise EpisodeLogError(
            f"Another process is writing to {folder}. Stop it first, or name another folder."
        ) from error
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return descriptor


def unlock(descriptor: int) -> None:
    """Let other processes write again."""
    os.close(descriptor)
