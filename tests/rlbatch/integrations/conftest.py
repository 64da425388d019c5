"""The pages of the frameworks show changed lines: their tests run these."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="session")
def changed_lines() -> Callable[[str], tuple[str, str]]:
    """Return a function from a page's name to its first lines of code, plain and changed."""

    def read(page: str) -> tuple[str, str]:
        found = re.search(r"```diff\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
        assert found is not None, f"{page} shows no changed lines"
        lines = found[1].splitlines()
        plain, changed = ([line[1:] for line in lines if line[:1] != sign] for sign in "+-")
        return "\n".join(plain), "\n".join(changed)

    return read
