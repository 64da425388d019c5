"""The runs of a bandit in a SQLite file, for any number of processes at once.

store = BanditStore(Path("job.sqlite"), Bandit(sizes=(32, 64, 128, 256), default=64))
run = store.start()
...                                         # train with run.choice.batch_size
store.finish(run, cost=seconds, converged=True)
"""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rlbatch.agents.search.bandit import Bandit, Choice, PastRun, choose
from rlbatch.agents.search.trial_store import connect, kept_settings, transaction
from rlbatch.errors import ConfigurationError

LEASE_SECONDS = 24 * 3600.0
"""A run on another machine that has not ended after this time is taken for lost."""

_TABLES = """
CREATE TABLE IF NOT EXISTS bandit (id INTEGER PRIMARY KEY CHECK (id = 0), content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch_size INTEGER NOT NULL, pruning INTEGER NOT NULL,
    host TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL,
    running INTEGER NOT NULL, cost REAL, converged INTEGER NOT NULL
);
"""


@dataclass(frozen=True)
class StartedRun:
    """A recurrence that has been given its size.

    Attributes:
        id: Its number, from 1.
        choice: What it is to do.
    """

    id: int
    choice: Choice


class BanditStore:
    """A bandit whose runs are shared through a file."""

    def __init__(self, path: Path, plan: Bandit, lease_seconds: float = LEASE_SECONDS) -> None:
        """Open the file, or make it.

        Args:
            path: The database.
            plan: Sizes and settings.
            lease_seconds: Longest that a run on another machine may take.

        Raises:
            ConfigurationError: It was made for other sizes or settings, or is no database.
        """
        self.plan, self._path, self._lease = plan, path, lease_seconds
        wanted = json.dumps(asdict(plan), sort_keys=True)
        with closing(connect(path)) as connection:
            connection.executescript(_TABLES)
            kept = kept_settings(connection, "bandit", wanted)
        if kept != wanted:
            raise ConfigurationError(
                f"{path} holds a bandit of other settings: {kept}. Repeat them to go on, or name "
                "another file."
            )

    def start(self, most: int | None = None) -> StartedRun | None:
        """Choose the size of the next recurrence and note that it runs.

        Runs whose process is gone are dropped first.

        Args:
            most: Return None where so many have been started, those that were lost not counted.

        Raises:
            RlbatchError: No size converges.
        """
        with closing(connect(self._path)) as connection, transaction(connection):
            self._drop_lost(connection)
            runs = _runs(connection)
            if most is not None and len(runs) >= most:
                return None
            choice = choose(self.plan, runs)
            owner = socket.gethostname(), os.getpid(), time.time()
            cursor = connection.execute(
                "INSERT INTO runs (batch_size, pruning, host, process, started, running, converged)"
                " VALUES (?, ?, ?, ?, ?, 1, 0)",
                (choice.batch_size, choice.pruning, *owner),
            )
            return StartedRun(int(cursor.lastrowid or 0), choice)

    def finish(self, run: StartedRun, cost: float, converged: bool) -> None:
        """Note how a run ended.

        Args:
            run: What `start` returned.
            cost: What it spent, also where it was given up.
            converged: It reached its target within `run.choice.max_cost`.

        Raises:
            ConfigurationError: The cost is not positive and finite.
        """
        if not (math.isfinite(cost) and cost > 0):
            raise ConfigurationError(f"A run's cost must be positive and finite, got {cost}.")
        with closing(connect(self._path)) as connection, transaction(connection):
            # Inserted anew where another process took it for lost: it was not.
            connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (id) DO UPDATE "
                "SET running = 0, cost = excluded.cost, converged = excluded.converged",
                (run.id, run.choice.batch_size, False, socket.gethostname(), os.getpid(),
                 time.time(), cost, converged),
            )  # fmt: skip

    def runs(self) -> list[PastRun]:
        """Return all runs, oldest first."""
        with closing(connect(self._path)) as connection:
            return _runs(connection)

    def lost(self) -> list[StartedRun]:
        """Return the runs that have not ended, and of which the process is gone."""
        with closing(connect(self._path)) as connection:
            rows = connection.execute(
                "SELECT id, batch_size, pruning, host, process, started FROM runs WHERE running"
            ).fetchall()
        return [
            StartedRun(row[0], Choice(row[1], bool(row[2]), math.inf, ""))
            for row in rows
            if self._is_lost(*row[3:])
        ]

    def _drop_lost(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT id, host, process, started FROM runs WHERE running")
        for run, *owner in rows.fetchall():
            if self._is_lost(*owner):
                connection.execute("DELETE FROM runs WHERE id = ?", (run,))

    def _is_lost(self, host: str, process: int, started: float) -> bool:
        if host != socket.gethostname():
            return time.time() - started > self._lease
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's, so it is there
            pass
        return False


def _runs(connection: sqlite3.Connection) -> list[PastRun]:
    rows = connection.execute(
        "SELECT batch_size, pruning, running, cost, converged FROM runs ORDER BY id"
    )
    return [
        PastRun(size, bool(pruning), bool(running), math.nan if cost is None else cost, bool(good))
        for size, pruning, running, cost, good in rows
    ]
