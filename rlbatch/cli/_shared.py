"""What several commands share: choices, tables, progress and the care for existing files."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlbatch.errors import ConfigurationError, MissingExtraError
from rlbatch.files import is_temporary
from rlbatch.text import escaped

LINE_EVERY = 10.0
"""Seconds between two lines of progress, where there is no terminal to draw a bar on."""

CouplingName = Literal["none", "sqrt", "linear", "adascale"]


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Sequence[str] = (),
    caption: str | None = None,
) -> None:
    """Print a table; columns hold numbers unless they are named in `text`.

    What does not print, such as control characters in a file's texts, is escaped.

    Args:
        title: Above the table.
        columns: Their headings.
        rows: Cells.
        text: Columns that are aligned to the left.
        caption: Below the table.
    """
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("rich", "cli") from error
    from rlbatch.cli._tables import table_or_blocks

    console = Console()
    # What is piped or kept in a file is not folded to the width of a terminal that is not there.
    console = console if console.is_terminal else Console(width=160)
    # Not as the table's own title and caption, which are folded to its width.
    console.print(Text(escaped(title), style="bold"))
    shown = [[escaped(cell) for cell in row] for row in rows]
    heads = [escaped(name) for name in columns]
    numbers = [name not in text for name in columns]
    console.print(table_or_blocks(heads, shown, numbers, console.width))
    if caption is not None:
        console.print(Text(escaped(caption), style="dim"))


def print_json(value: Any) -> None:
    """Print one value as strict JSON."""
    print(json.dumps(value, allow_nan=False, indent=2))


def print_json_lines(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one object a line."""
    for row in rows:
        print(json.dumps(row, allow_nan=False))


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int | None], None]]:
    """Show a progress bar with the time left on standard error while the block runs.

    Where that is no terminal, a line says every few seconds what is done.

    Yields:
        A function of (done, total), the total None where it is not known.
    """
    with progresses(what) as (update,):
        yield update


@contextmanager
def progresses(*whats: str) -> Generator[list[Callable[[int, int | None], None]]]:
    """Show several progress bars below each other; each appears with its first report.

    Yields:
        A function of (done, total) for each of them.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Left
    except ImportError as error:
        raise MissingExtraError("rich", "cli") from error
    times = (Elapsed(), TextColumn("left"), Left())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield [_Lines(what) for what in whats]
        return
    with Progress(*columns, console=console) as bar:
        single = len(whats) == 1
        tasks = [bar.add_task(what, total=None, visible=single) for what in whats]

        def update(task: TaskID, done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield [partial(update, task) for task in tasks]


class _Lines:
    """Prints now and then how much is done; nothing of what takes less than a few seconds."""

    def __init__(self, what: str) -> None:
        self._what, self._last = what, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            note(f"{self._what}: {done:,}" + ("" if total is None else f" of {total:,}"))


def require_possible_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that can neither be there nor be made.

    Raises:
        ConfigurationError: It, or what it would be in, is a file or may not be written to.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ConfigurationError(
            f"{folder} cannot be a folder: {nearest} is a file. Name another one with {option}; "
            "nothing is overwritten."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{folder} cannot be written: there is no permission to write in {nearest}. Permit it, "
            f"or name another folder with {option}."
        )


def require_new_folder(folder: Path, but: Collection[str] = ()) -> None:
    """Refuse a folder that holds something, or that cannot be made.

    Args:
        folder: To be written to.
        but: Names of what it may hold all the same.

    Raises:
        ConfigurationError: It is a file, not empty, or out of reach.
    """
    require_possible_folder(folder)
    kept = (
        (entry for entry in folder.iterdir() if not is_temporary(entry)) if folder.exists() else ()
    )
    if any(entry.name not in but for entry in kept):
        raise ConfigurationError(
            f"{folder} already exists and is not an empty folder. Name a new one with --out; "
            "nothing is overwritten."
        )


def require_new_policy_file(path: Path) -> None:
    """Refuse what no policy file could be written to.

    Raises:
        ConfigurationError: It ends in something else, is there already, or its folder cannot be.
    """
    if path.suffix != ".safetensors":
        raise ConfigurationError(
            f"--out names the policy file, which ends in .safetensors; got {path}."
        )
    if path.exists():
        raise ConfigurationError(f"{path} already exists. Name a new file; nothing is overwritten.")
    require_possible_folder(path.parent)


@contextmanager
def search_folder(
    folder: Path, identity: Mapping[str, Any], shared: bool = False
) -> Generator[None]:
    """Keep a folder for one search while the block runs.

    Args:
        folder: A new one, or that of the same search.
        identity: The search's settings, kept in `search.json`.
        shared: Other processes may work in it at the same time.

    Raises:
        ConfigurationError: It holds something else.
        EpisodeLogError: Another process works in it.
    """
    from rlbatch.files import lock_folder, unlock, write_atomically

    path = folder / "search.json"
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if not path.is_file():
        require_new_folder(folder, but=(".lock",))
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigurationError(
            f"{folder} holds a search with other settings (see {path}). Repeat its settings to go "
            "on with it, or name another folder with --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = None if shared else lock_folder(folder)
    try:
        if not path.is_file():
            write_atomically(path, text)
        yield
    finally:
        if lock is not None:
            unlock(lock)


def note(text: str) -> None:
    """Print a remark on standard error, where it does not disturb the output."""
    print(escaped(text), file=sys.stderr)


def say(text: str) -> None:
    """Print a line that may hold names from files, or of files."""
    print(escaped(text))
