"""Runs side by side, all of them or those that are begun in time."""

from __future__ import annotations

import math
import os
import types
from collections import deque

import pytest

from rlbatch.agents import executor as module
from rlbatch.agents.executor import Deadline, SerialExecutor, open_executor


def work(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def numbers(count: int) -> deque[tuple[str, int]]:
    return deque((str(number), number) for number in range(count))


def test_one_process_begins_no_run_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes_a_second(number: int) -> int:
        nonlocal now
        now += 1.0
        return number

    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now))
    for until, needed, made in ((3.5, 0, 4), (3.0, 0, 3), (0.0, 0, 0), (1.0, 5, 5), (1.0, 9, 6)):
        now = 0.0
        found = SerialExecutor().run(
            takes_a_second, numbers(6), deadline=Deadline(until, needed=needed)
        )
        assert [key for key, _ in found] == [str(number) for number in range(made)]
    assert len(list(SerialExecutor().run(takes_a_second, numbers(6)))) == 6


@pytest.mark.slow
def test_several_processes_begin_only_what_is_needed_after_the_deadline() -> None:
    with open_executor(2) as executor:
        late = Deadline(until=-math.inf, needed=3)
        found = dict(executor.run(work, numbers(7), deadline=late))
        assert {key: square for key, (square, _) in found.items()} == {"0": 0, "1": 1, "2": 4}
        assert os.getpid() not in {process for _, process in found.values()}
        assert not list(executor.run(work, numbers(7), deadline=Deadline(until=-math.inf)))
        everything = dict(executor.run(work, numbers(7)))
        assert {key: square for key, (square, _) in everything.items()} == {
            str(number): number**2 for number in range(7)
        }
