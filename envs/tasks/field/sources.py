"""Text that every Python has: the sources of its standard library."""

from __future__ import annotations

import functools
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from rlbatch.envs.tasks.table import TensorTable, shuffled_split
from rlbatch.errors import RlbatchError

CHARACTERS = 97  # printable ASCII, the line end, and one for all others
_PIECE = re.compile(r"[A-Za-z_]+|[0-9]+|\n *| +|.")


@functools.cache
def library_text(pattern: str) -> str:
    """Return the standard library's files of a glob pattern, joined in the order of their names.

    The text differs a little between versions of Python, and with it the numbers of a run.

    Raises:
        RlbatchError: There are none, as in a Python without sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        raise RlbatchError(
            f"Task data: no files {pattern} in {folder}. Use a Python with its library's sources."
        )
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def character_codes(text: str) -> Tensor:
    """Return int64 [N]: 0 the line end, 1 to 95 printable ASCII, 96 anything else."""
    codes = torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8).long()
    known = (codes >= 32) & (codes < 127)
    return torch.where(codes == 10, 0, torch.where(known, codes - 31, CHARACTERS - 1))


def piece_codes(text: str, vocabulary: int) -> Tensor:
    """Return int64 [N]: words, numbers, blanks and signs; 0 for those beyond the vocabulary."""
    pieces = _PIECE.findall(text)
    common = [piece for piece, _ in Counter(pieces).most_common(vocabulary - 1)]
    index = {piece: i for i, piece in enumerate(common, start=1)}
    return torch.tensor([index.get(piece, 0) for piece in pieces])


def windows(codes: Tensor, length: int, val_windows: int) -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, length + 1] that do not overlap."""
    usable = len(codes) // (length + 1) * (length + 1)
    return shuffled_split((codes[:usable].view(-1, length + 1),), val_windows)
