"""Learning curves of fixed batch sizes on disk: computed once, shared by all comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlbatch.envs.fixed_run import Curve
from rlbatch.errors import ConfigurationError
from rlbatch.files import append_bytes


@dataclass(frozen=True)
class CurveKey:
    """Everything that determines a fixed run's curve, but for where it stops.

    Attributes:
        task: Name, or file and function, with a fingerprint of the task.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        batch_size: Samples per optimizer step.
        cadence: Spacing of the validations, as JSON.
        planned_steps: Length of the schedule; None for a constant learning rate.
        target: Validation loss that ends the run; None for none.
        wall: The costs were measured, on the wall clock.
    """

    task: str
    seed: int
    coupling: str
    batch_size: int
    cadence: str
    planned_steps: int | None
    target: float | None
    wall: bool = False


class CurveStore:
    """Curves by key, in memory and, with a path, as lines of a JSON Lines file.

    Of several lines of one key the last counts. A torn last line, left by a killed process, is cut
    off. One process writes a file at a time.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read what the file holds, if it exists.

        Raises:
            ConfigurationError: The file holds something else.
        """
        self._path = path
        self._curves: dict[CurveKey, Curve] = {}
        if path is not None and path.exists():
            for line in read_lines(path):
                self._add(line)

    def get(self, key: CurveKey) -> Curve | None:
        """Return the curve of a key, None where it is not known."""
        return self._curves.get(key)

    def items(self) -> list[tuple[CurveKey, Curve]]:
        """Return every curve with its key."""
        return list(self._curves.items())

    def put(self, key: CurveKey, curve: Curve) -> None:
        """Keep a curve."""
        self._curves[key] = curve
        if self._path is not None:
            row = {"key": asdict(key), "curve": asdict(curve)}
            row["curve"]["val_loss"] = [x if math.isfinite(x) else None for x in curve.val_loss]
            append_line(self._path, row)

    def _add(self, line: dict[str, Any]) -> None:
        try:
            values = dict(line["curve"])
            losses = [math.nan if x is None else float(x) for x in values.pop("val_loss")]
            key = CurveKey(**line["key"])
            for name in ("steps", "samples", "seconds"):
                values[name] = tuple(values[name])
            self._curves[key] = Curve(val_loss=tuple(losses), **values)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self._path} does not hold learning curves ({error}). Remove it, or name another "
                "folder."
            ) from error


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    append_lines(path, [row])


def append_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append JSON objects as lines, in one write, so that processes may share the file."""
    text = "".join(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n" for row in rows)
    append_bytes(path, text.encode())


def cut_torn_line(path: Path) -> None:
    """Cut off what a killed process left behind the last newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            file.truncate(end)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file, oldest first, a torn last line left out.

    Raises:
        ConfigurationError: Another line is damaged.
    """
    rows: list[dict[str, Any]] = []
    *lines, _ = path.read_bytes().split(b"\n")  # a line counts only with its newline
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigurationError(
                f"{path}, line {number} is damaged ({error}). Remove that line to go on."
            ) from error
        rows.append(row)
    return rows
