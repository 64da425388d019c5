"""The names of searches in a benchmark, such as `sweep` or `bandit:runs=10`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rlbatch.errors import ConfigurationError

Name = Literal["sweep", "bayesian", "bandit"]
NAMES: tuple[Name, ...] = ("sweep", "bayesian", "bandit")
RECURRING = 10


@dataclass(frozen=True)
class Searcher:
    """A search in a benchmark.

    Attributes:
        name: Which one.
        runs: How often the job recurs.
    """

    name: Name
    runs: int = 1


def parse_searcher(text: str) -> Searcher | None:
    """Return the search of a text such as `sweep` or `sweep:runs=10`; None for anything else.

    Raises:
        ConfigurationError: It begins like one and goes on otherwise.
    """
    name, colon, rest = text.partition(":")
    if name not in NAMES:
        return None
    match = re.fullmatch(r"runs=([1-9][0-9]*)", rest)
    if colon and match is None:
        raise ConfigurationError(f"A search is given as {name} or {name}:runs=N, got {text!r}.")
    return Searcher(name, int(match.group(1)) if match else 1)


def with_recurring(policies: tuple[str, ...]) -> tuple[str, ...]:
    """Return the policies; a bare search is followed by the same with ten recurring runs."""
    found: list[str] = []
    for text in policies:
        found.append(text)
        if text in NAMES:
            found.append(f"{text}:runs={RECURRING}")
    return tuple(dict.fromkeys(found))
