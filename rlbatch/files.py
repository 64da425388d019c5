"""Writing files so that a crash leaves them whole, and one writer at a time."""

from __future__ import annotations

import os
from pathlib import Path

from rlbatch.errors import EpisodeLogError

LOCK_FILE = ".lock"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes; a nearly full disk takes some and reports its error at the next call."""
    while content:
        content = content[os.write(descriptor, content) :]


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
