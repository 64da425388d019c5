"""Finished trials on disk, in SQLite: a kill loses none, and several processes may write."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlbatch.agents.search.trials import Outcome, TrialSpec
from rlbatch.errors import ConfigurationError

PATIENCE_SECONDS = 60.0
"""How long one process waits for another that writes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (id INTEGER PRIMARY KEY CHECK (id = 0), content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    batch_size INTEGER NOT NULL, rate REAL NOT NULL, seed INTEGER NOT NULL, outcome TEXT NOT NULL,
    PRIMARY KEY (batch_size, rate, seed)
);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection that commits only when told to, to a database in WAL mode.

    Raises:
        ConfigurationError: The file is no database.
    """
    connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")  # a finished run survives a power cut, too
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise ConfigurationError(f"{path} is no SQLite database ({error}). Remove it.") from error
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode, once: SQLite does not wait here when another process is switching."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """Hold the right to write while the block runs, so that nobody writes in between."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def kept_settings(connection: sqlite3.Connection, table: str, wanted: str) -> str:
    """Return what the database was made for, which is `wanted` where it is new.

    Args:
        connection: From `connect`.
        table: Holds the one row; a name of this package's, never a user's.
        wanted: Settings as JSON.
    """
    with transaction(connection):
        row = connection.execute(f"SELECT content FROM {table}").fetchone()
        if row is None:
            connection.execute(f"INSERT INTO {table} VALUES (0, ?)", (wanted,))
    return wanted if row is None else str(row[0])


class TrialStore:
    """The trials of one search, by what tells them apart."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the file, or make it.

        Args:
            path: The database.
            settings: What must be the same for its trials to be of use, as JSON values.

        Raises:
            ConfigurationError: It holds trials of other settings, or is no database.
        """
        self._path = path
        wanted = json.dumps(settings, sort_keys=True)
        with closing(connect(path)) as connection:
            connection.executescript(_TABLES)
            kept = kept_settings(connection, "settings", wanted)
        if kept != wanted:
            known = json.loads(kept)
            keys = {*known, *settings}
            different = sorted(key for key in keys if known.get(key) != settings.get(key))
            raise ConfigurationError(
                f"{path.parent} holds a search with other settings (different: "
                f"{', '.join(different)}). Repeat its settings to continue it, or name another "
                "folder."
            )

    def all(self) -> dict[TrialSpec, Outcome]:
        """Return every finished trial."""
        with closing(connect(self._path)) as connection:
            rows = connection.execute("SELECT batch_size, rate, seed, outcome FROM trials")
            return {TrialSpec(*row[:3]): Outcome.from_json(row[3]) for row in rows}

    def put(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Keep a finished trial."""
        with closing(connect(self._path)) as connection, transaction(connection):
            connection.execute(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?)",
                (spec.batch_size, spec.rate, spec.seed, outcome.to_json()),
            )
