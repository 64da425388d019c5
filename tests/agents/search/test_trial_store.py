from __future__ import annotations

import math
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from rlbatch.agents.search.trial_store import TrialStore
from rlbatch.agents.search.trials import TrialSpec
from rlbatch.errors import ConfigurationError
from tests.agents.search.made_up import outcome


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    path, spec = tmp_path / "trials.sqlite", TrialSpec(64, 0.5, 3)
    kept = outcome(3.0, 0.25, memory=7)
    TrialStore(path, {"task": "a"}).put(spec, kept)

    assert TrialStore(path, {"task": "a"}).all() == {spec: kept}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_losses_that_are_no_numbers_come_back(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials.sqlite", {})
    store.put(TrialSpec(1, 0.0, 0), outcome(1.0, math.nan, curve=((1.0, 2.0, math.inf),)))

    back = store.all()[TrialSpec(1, 0.0, 0)]
    assert math.isnan(back.loss)
    assert math.isnan(back.curve[0][2])


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    TrialStore(path, {"task": "a", "seeds": 1})

    with pytest.raises(ConfigurationError, match=r"different: seeds"):
        TrialStore(path, {"task": "a", "seeds": 2})


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    path.write_text("a thesis, by no means a database")

    with pytest.raises(ConfigurationError, match="no SQLite database"):
        TrialStore(path, {})
    assert path.read_text() == "a thesis, by no means a database"


def _write(path: Path, seed: int) -> None:
    store = TrialStore(path, {})
    for size in range(1, 11):
        store.put(TrialSpec(size, 0.0, seed), outcome(float(size)))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(TrialStore(path, {}).all()) == 30
