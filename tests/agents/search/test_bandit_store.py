from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from rlbatch.agents.search.bandit import Bandit
from rlbatch.agents.search.bandit_store import BanditStore
from rlbatch.errors import ConfigurationError

PLAN = Bandit((8, 16, 32), 16)


def test_a_run_is_there_from_its_start(tmp_path: Path) -> None:
    store = BanditStore(tmp_path / "job.sqlite", PLAN)
    run = store.start()

    assert run is not None
    assert (run.id, run.choice.batch_size, run.choice.pruning) == (1, 16, True)
    assert [one.running for one in store.runs()] == [True]
    store.finish(run, 3.0, converged=True)
    assert [(one.running, one.cost, one.converged) for one in store.runs()] == [(False, 3.0, True)]


def test_other_settings_and_no_costs_are_refused(tmp_path: Path) -> None:
    store = BanditStore(tmp_path / "job.sqlite", PLAN)
    run = store.start()
    assert run is not None

    with pytest.raises(ConfigurationError, match="other settings"):
        BanditStore(tmp_path / "job.sqlite", Bandit((8, 16), 16))
    with pytest.raises(ConfigurationError, match="positive"):
        store.finish(run, float("inf"), converged=True)


def test_no_more_are_started_than_wanted(tmp_path: Path) -> None:
    store = BanditStore(tmp_path / "job.sqlite", PLAN)

    assert [store.start(2) is None for _ in range(3)] == [False, False, True]


def _run_many(path: Path, count: int) -> None:
    store = BanditStore(path, PLAN)
    while (run := store.start(count)) is not None:
        time.sleep(0.001)
        store.finish(run, 100.0 / run.choice.batch_size + run.id / 1000, converged=True)


def _start_and_wait(path: Path) -> None:
    BanditStore(path, PLAN).start()
    (path.parent / "started").touch()
    time.sleep(60)


@pytest.mark.slow
def test_processes_share_a_bandit_and_no_run_is_lost_or_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "job.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run_many, args=(path, 60)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    runs = BanditStore(path, PLAN).runs()
    assert len(runs) == 60
    assert not any(run.running for run in runs)
    # A process that waits with a step of the pruning lets the others go on without it: the pruning
    # may last longer than these runs, and is ended alone.
    _run_many(path, 70)
    # The pruning of three sizes that all converge: each of them once in each of the two rounds. It
    # is replayed at each start: a wrong order would have raised an error.
    pruning = [run.batch_size for run in BanditStore(path, PLAN).runs() if run.pruning]
    assert pruning == [16, 8, 32, 32, 16, 8]


@pytest.mark.slow
def test_a_killed_run_is_dropped_and_its_step_of_the_pruning_made_again(tmp_path: Path) -> None:
    path = tmp_path / "job.sqlite"
    process = multiprocessing.get_context("spawn").Process(target=_start_and_wait, args=(path,))
    process.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    store = BanditStore(path, PLAN)
    assert not store.lost()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()

    assert [run.id for run in store.lost()] == [1]
    again = store.start()
    assert again is not None
    assert (again.id, again.choice.batch_size, again.choice.pruning) == (2, 16, True)
