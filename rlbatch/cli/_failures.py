"""What the command line says when something goes wrong: one sentence, and an exit code.

`RLBATCH_TRACEBACK=1` shows the whole traceback as well.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
import traceback
from concurrent.futures import BrokenExecutor
from pathlib import Path

from rlbatch.errors import ConfigurationError, PolicyFileError, RlbatchError
from rlbatch.text import escaped

FAILED, WRONG_USE = 1, 2
TRACEBACK = "RLBATCH_TRACEBACK"

_FRAME = re.compile(r'^ *(?:\|  *)?File "(.+?)", line (\d+)', re.MULTILINE)
# What SQLite says where nothing is wrong with the statement.
_OUTSIDE = re.compile(r"is full|disk I/O error|is locked|readonly|unable to open")
_REMEDIES = {
    errno.ENOSPC: "Make room and repeat the command; what was finished is kept.",
    errno.EDQUOT: "Make room and repeat the command; what was finished is kept.",
    errno.EACCES: "Permit it, or name another place.",
    errno.EPERM: "Permit it, or name another place.",
    errno.EROFS: "Name another place.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EEXIST: "Check the path: there is a file of that name.",
    errno.EISDIR: "Check the path: there is a folder of that name.",
    errno.ENOENT: "Check the path.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or take fewer --jobs.",
    errno.ENOMEM: "Free memory, or take fewer --jobs.",
}


def report(error: BaseException) -> int:
    """Print what went wrong on standard error and return the exit code."""
    if os.environ.get(TRACEBACK):
        text = "".join(traceback.format_exception(error))
        print(escaped(text, keep="\n"), end="", file=sys.stderr)
    print(f"rlbatch: {escaped(_one_line(sentence(error)))}", file=sys.stderr)
    wrong_use = isinstance(error, ConfigurationError | PolicyFileError)
    return WRONG_USE if wrong_use else FAILED


def sentence(error: BaseException) -> str:
    """Return what went wrong and what to do, in a sentence or two."""
    if isinstance(error, RlbatchError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory. Free some, or take fewer --jobs or a smaller task."
    if isinstance(error, BrokenExecutor):
        return (
            "A worker process was killed, perhaps for want of memory. Repeat the command to go "
            "on, with fewer --jobs if it happens again."
        )
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" of {error.filename}"
        remedy = _REMEDIES.get(error.errno or 0, f"It happened in {_place(error)}.")
        return f"Reading or writing{where} failed: {error.strerror}. {remedy}"
    if (said := _of_database(error)) is not None:
        return (
            f"Reading or writing a database failed: {said}. Make room or free it, and repeat the "
            "command; what was finished is kept."
        )
    what = type(error).__name__ + (f": {error}" if str(error) else "")
    return f"Failed with {what} in {_place(error)}. {TRACEBACK}=1 shows how it came to that."


def _of_database(error: BaseException | None) -> str | None:
    """Return what SQLite says of a disk that is full or a database that is held, if it is that.

    SQLAlchemy and Optuna wrap its errors in their own.
    """
    import sqlite3  # here, since most commands have no database

    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, sqlite3.OperationalError) and _OUTSIDE.search(str(error)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame that is nobody's library, else of the last.

    An error from another process carries that process's frames as text only, so all is read from
    the text.
    """
    frames = _FRAME.findall("".join(traceback.format_exception(error)))
    own = [frame for frame in frames if not _is_library(frame[0])]
    if not frames:
        return "an unknown place"
    file, line = (own or frames)[-1]
    return f"{file}, line {line}"


def _is_library(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to rlbatch."""
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return True
    package = Path(__file__).parents[1]
    folders = [sysconfig.get_path("stdlib"), package, (package / "envs").resolve()]
    folders.append((package / "agents").resolve())
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _one_line(text: str) -> str:
    """Return a text on one line; what a terminal would obey, from a file's name say, is shown."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
