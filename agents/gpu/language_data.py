"""Python's own library as bytes, cut into windows: what a small language model is trained on."""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rlbatch.errors import ConfigurationError

_NOT = {"site-packages", "dist-packages", "__pycache__"}
_VALIDATION = 20  # one file of so many is held out
_FEWEST = 50_000  # bytes of either part


@dataclass(frozen=True)
class Text:
    """Bytes on a device, shape (bytes,), uint8.

    Attributes:
        train: To learn from.
        validation: Of other files.
        files: Number of files.
    """

    train: Tensor
    validation: Tensor
    files: int


def library_text(device: torch.device, most: int = 1 << 26) -> Text:
    """Return the sources of the standard library, whole files held out for validation.

    Args:
        device: Where the bytes are to be.
        most: About how many bytes are read.

    Raises:
        ConfigurationError: There are too few sources here.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    files = size = 0
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not _NOT.isdisjoint(inside.parts) or size > most:
            continue
        content = path.read_bytes()
        held_out = zlib.crc32(inside.as_posix().encode()) % _VALIDATION == 0
        parts[held_out].append(content)
        files, size = files + 1, size + len(content)
    train, validation = (b"".join(part) for part in parts)
    if min(len(train), len(validation)) < _FEWEST:
        raise ConfigurationError(
            f"Expected Python's own sources in {root}, found {size:,} bytes of them. Install "
            "Python with its library's sources."
        )
    return Text(_on(device, train), _on(device, validation), files)


def _on(device: torch.device, content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)


class Windows(Dataset[Tensor]):
    """Windows of a text at random places: an input and, shifted by one, what is to be told.

    Batches are made on the text's device, and nobody waits for it.
    """

    def __init__(self, text: Tensor, length: int, samples: int, seed: int) -> None:
        """Draw the places.

        Args:
            text: Bytes, shape (bytes,).
            length: Tokens of an input.
            samples: Windows.
            seed: Of the places.
        """
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - length, (samples,), generator=generator)
        self._text, self._starts = text, starts.to(text.device)
        self._within = torch.arange(length + 1, device=text.device)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return windows, shape (windows, length + 1), int64."""
        chosen = torch.tensor(indices).to(self._starts.device, non_blocking=True)
        return self._text[self._starts[chosen][:, None] + self._within].long()


def as_it_is(batch: Any) -> Any:
    """Return what a loader has fetched: it is a batch already."""
    return batch
