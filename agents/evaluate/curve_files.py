"""Where the curves of a task, coupling and seed are kept, and the ones that ship with rlbatch."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from rlbatch.agents.evaluate.curve_store import CurveStore, cut_torn_line, read_lines
from rlbatch.files import write_atomically

SHIPPED = Path(__file__).with_name("field_curves")
"""Curves of the field suite, so that nobody has to make them again."""

_LONGEST_NAME = 180  # file systems take 255 bytes; a task's fingerprint comes last


def curve_path(folder: Path, task_id: str, coupling: str, seed: int) -> Path:
    """Return the file of a task's fixed runs.

    Args:
        folder: Of the references.
        task_id: As `rlbatch.agents.evaluate.settings.task_identity`.
        coupling: How the learning rate follows the batch size.
        seed: Of the runs.
    """
    return folder / file_name(f"{task_id}-{coupling}-{seed}.jsonl")


def open_curves(path: Path) -> CurveStore:
    """Return the curves of a file, begun with those that ship with rlbatch if there are any.

    What a killed process left of a line is cut off.
    """
    shipped = SHIPPED / f"{path.name}.xz"
    if not path.exists() and shipped.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lzma.decompress(shipped.read_bytes()).decode())
    cut_torn_line(path)
    return CurveStore(path)


def pack(path: Path) -> Path:
    """Put a file of curves among those that ship, and return where.

    Losses keep seven digits, which is what single precision holds.
    """
    SHIPPED.mkdir(exist_ok=True)
    lines: list[str] = []
    for row in read_lines(path):
        losses = row["curve"]["val_loss"]
        row["curve"]["val_loss"] = [None if x is None else float(f"{x:.7g}") for x in losses]
        lines.append(json.dumps(row, separators=(",", ":")) + "\n")
    target = SHIPPED / f"{path.name}.xz"
    target.write_bytes(lzma.compress("".join(lines).encode(), preset=9))
    return target


def file_name(text: str) -> str:
    """Return a text that can name a file; of a long one the end."""
    return "".join(c if c.isalnum() or c in "-_.#" else "_" for c in text)[-_LONGEST_NAME:]
