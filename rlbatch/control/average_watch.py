"""Notices that an average of weights was updated between two parts of one optimizer step."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch.optim.swa_utils import AveragedModel


class AverageWatch:
    """Follows how often torch's `AveragedModel`s of this process were updated.

    They do not know whose weights they average: all of them are looked for, in ever rarer steps.
    """

    def __init__(self) -> None:
        """Know of none yet."""
        self._found: list[weakref.ref[Any]] = []
        self._seen: list[tuple[weakref.ref[Any], int]] = []
        self._calls, self._next_search = 0, 1

    def remember(self) -> None:
        """Note how often each was updated."""
        self._calls += 1
        if self._calls == self._next_search:
            self._next_search *= 4
            self._found = [weakref.ref(average) for average in _averages()]
        found = ((ref, ref()) for ref in self._found)
        self._seen = [(ref, _updates(average)) for ref, average in found if average is not None]

    def updated(self) -> bool:
        """Return whether one that is still there was updated since `remember`."""
        averages = ((ref(), updates) for ref, updates in self._seen)
        return any(a is not None and _updates(a) != updates for a, updates in averages)

    def forget(self) -> None:
        """The step is complete."""
        self._seen = []


def _averages() -> list[Any]:
    # By type(): a foreign object may answer isinstance() with code of its own.
    return [found for found in gc.get_objects() if issubclass(type(found), AveragedModel)]


def _updates(average: Any) -> int:
    return average.n_averaged._version
