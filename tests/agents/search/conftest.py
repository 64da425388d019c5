"""The cheap task by name, and outcomes made up without any training."""

from __future__ import annotations

import pytest

from tests.agents.evaluate import cheap_task

CHEAP = f"{cheap_task.__file__}:make"


@pytest.fixture
def cheap() -> str:
    return CHEAP
