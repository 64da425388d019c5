"""What a training notes for its resumption. A damaged note costs time, no result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rlbatch.files import write_atomically

Noted = TypeVar("Noted")


def write_note(path: Path, content: Any) -> None:
    """Write a note of JSON-compatible values, whole or not at all."""
    write_atomically(path, json.dumps(content) + "\n")


def read_note(path: Path, make: Callable[[Any], Noted]) -> Noted | None:
    """Return what a note says; None where there is none, or a damaged one.

    Args:
        path: Of the note.
        make: From its content to what it says; it may raise what wrong content makes it raise.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
