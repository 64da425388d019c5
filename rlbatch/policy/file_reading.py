"""Opens a policy file and reads its parts; whatever goes wrong is said with the file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rlbatch.errors import PolicyFileError
from rlbatch.policy.container import Header, Tensors, read_header, read_tensors
from rlbatch.policy.file_checks import complain


def opened(path: Path) -> BinaryIO:
    """Open a file, and nothing that would be waited for, such as a pipe."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise PolicyFileError(
                f"{path}: a policy file (.safetensors) was expected, and this is no regular file. "
                "Copy it to one."
            )
        return path.open("rb")
    except FileNotFoundError:
        raise PolicyFileError(f"{path}: there is no such policy file. Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: no path can have such a name
        raise PolicyFileError(
            f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}. Name a policy "
            "file (.safetensors) that may be read."
        ) from error


def read_any_header(path: Path, file: BinaryIO) -> Header:
    """Return the header of a safetensors file, whatever it is of."""
    try:
        start = file.read(4)
        if not start.startswith(b"PK"):
            file.seek(0)
            return read_header(file)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    raise PolicyFileError(
        f"{path}: a policy file (.safetensors) was expected, and this is a zip archive, like a "
        "checkpoint of a training. Name the policy.safetensors beside it, which a training "
        f"writes at its end; one that was stopped goes on with: rlbatch train --resume --out "
        f"{path.parent}"
    )


def read_weights(path: Path, file: BinaryIO, header: Header) -> Tensors:
    """Return the weights that a header tells of; they are finite."""
    try:
        tensors = read_tensors(file, header)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    complain(
        path,
        [
            f"{name} has entries that are not finite"
            for name in sorted(tensors)
            if not np.isfinite(tensors[name]).all()
        ],
    )
    return tensors


def _unreadable(path: Path, error: Exception) -> PolicyFileError:
    return PolicyFileError(
        f"{path}: cannot be read as a .safetensors file of a policy ({error}). It is truncated, "
        "damaged or of another kind. Fetch it again, or make one with: rlbatch train"
    )
