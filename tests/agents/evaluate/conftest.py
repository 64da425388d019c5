"""The cheap task, as a value and by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlbatch.envs.task import Task, resolve_task

CHEAP = f"{Path(__file__).with_name('cheap_task.py')}:make"


@pytest.fixture
def cheap() -> str:
    return CHEAP


@pytest.fixture
def cheap_task() -> Task:
    return resolve_task(CHEAP)


@pytest.fixture
def scheduled_task() -> Task:
    return resolve_task(CHEAP.replace(":make", ":scheduled"))


@pytest.fixture
def hopeless_task() -> Task:
    return resolve_task(CHEAP.replace(":make", ":hopeless"))
