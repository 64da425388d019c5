"""What a part of the check found: tables that are on the disk as soon as a row is known."""

from __future__ import annotations

import json
import math
import platform
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlbatch.files import write_atomically

PASSED, FAILED, NEEDS_CUDA = "passed", "failed", "skipped: needs CUDA"
CHECKS = "checks"
"""Name of the table whose rows have a `result`."""


@dataclass(frozen=True)
class PartSettings:
    """How a part is run.

    Attributes:
        device: Where.
        tiny: A rehearsal: everything once, as small as can be.
        seconds: That it may take.
        out: The part's own file.
    """

    device: torch.device
    tiny: bool
    seconds: float
    out: Path

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU to check."""
        return self.device.type == "cuda"


class Report:
    """Tables and notes of a part, in a JSON file that is written anew with each of them."""

    def __init__(self, path: Path, part: str, device: torch.device) -> None:
        """Begin an empty report.

        Args:
            path: Its file.
            part: Name of the part.
            device: Where it runs.
        """
        self._path = path
        self._content: dict[str, Any] = {
            "part": part,
            "device": device_name(device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "notes": [],
            "tables": {},
            "values": {},
        }
        self._save()

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """Add a row to a table, which begins with its first one."""
        self._content["tables"].setdefault(table, []).append(dict(row))
        self._save()
        print(f"{table}: " + ", ".join(f"{k} {shown(v)}" for k, v in row.items()), flush=True)

    def check(self, name: str, passed: bool | None, detail: str = "") -> None:
        """Add the outcome of a check; None: it needs a GPU, and there is none."""
        result = NEEDS_CUDA if passed is None else PASSED if passed else FAILED
        self.add(CHECKS, {"check": name, "result": result, "detail": detail})

    def note(self, text: str) -> None:
        """Add a sentence."""
        self._content["notes"].append(text)
        self._save()
        print(text, flush=True)

    def keep(self, name: str, value: Any) -> None:
        """Keep JSON values that no table shows."""
        self._content["values"][name] = value
        self._save()

    @contextmanager
    def going_on(self, name: str) -> Generator[None]:
        """Let the rest of the part run, whatever an experiment raises: then its check failed."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:300])

    def experiment(self, name: str, work: Callable[[], None]) -> None:
        """Run one experiment of several."""
        with self.going_on(name):
            work()

    def _save(self) -> None:
        write_atomically(self._path, json.dumps(_finite(self._content), indent=1) + "\n")


def device_name(device: torch.device) -> str:
    """Return the card's name, or how many threads a CPU has to use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_markdown(content: Mapping[str, Any]) -> str:
    """Return a report's tables and notes for a page."""
    lines = [f"## {content['part']}", ""]
    for note in content["notes"]:
        lines += [note, ""]
    for name, rows in content["tables"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"### {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in rows:
            lines.append(f"| {' | '.join(shown(row.get(key)) for key in columns)} |")
        lines.append("")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")


def _finite(value: Any) -> Any:
    """Return JSON values; of numbers that are not finite, their names."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
