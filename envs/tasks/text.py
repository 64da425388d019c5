"""Reading the text that the tasks ship, and turning strings into rows of integers."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlbatch.errors import RlbatchError

DATA = Path(__file__).with_name("data")
PADDING = 0  # index that fills rows up


def read_text(name: str, folder: Path = DATA) -> str:
    """Return the text of the compressed file `name` of `folder`.

    Raises:
        RlbatchError: The file is missing, or not the one whose checksum `checksums.json` holds.
    """
    remedy = "Install rlbatch again, or make the file with scripts/make_text_data.py."
    sums = folder / "checksums.json"
    path = folder / name
    if not sums.is_file() or not path.is_file():
        missing = path if sums.is_file() else sums
        raise RlbatchError(f"Task data: there should be a file {missing}, and is none. {remedy}")
    expected = json.loads(sums.read_text()).get(name)
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise RlbatchError(
            f"Task data: {path} should have the SHA-256 {expected}, and has {found}. {remedy}"
        )
    return lzma.decompress(raw).decode()


def padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return int64 [N, width]: each row cut or filled with `PADDING`."""
    table = torch.full((len(rows), width), PADDING)
    for index, row in enumerate(rows):
        kept = row[:width]
        table[index, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return table
