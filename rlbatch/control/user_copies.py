"""Copies of what a user has registered to be put back with the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any


class UserCopies:
    """Copies of anything that can be saved and restored, in the order of registration.

    Attributes:
        saved: What was saved last; in a state that was loaded there may be fewer.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._hooks: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
        self.saved: Sequence[Any] = []

    def add(self, save: Callable[[], Any], restore: Callable[[Any], Any]) -> None:
        """Copy what `save` returns from now on, and give it to `restore` when it is put back."""
        self._hooks.append((save, restore))

    def now(self) -> list[Any]:
        """Return copies of what there is now."""
        return [copy.deepcopy(save()) for save, _ in self._hooks]

    def take(self) -> None:
        """Keep copies of what there is now."""
        self.saved = self.now()

    def restore(self) -> None:
        """Put back what was saved; it may be put back again."""
        for (_, restore), value in zip(self._hooks, self.saved, strict=False):
            restore(copy.deepcopy(value))
