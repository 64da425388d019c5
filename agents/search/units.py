"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from rlbatch.errors import ConfigurationError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str) -> int:
    """Return the bytes of a text such as `2GB`, `512MiB` or `1000000`.

    Raises:
        ConfigurationError: The text is no positive number of bytes.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    unit = None if match is None else _UNITS.get(match.group(2).lower())
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise ConfigurationError(
            f"Expected a number of bytes such as 2GB, 512MiB or 1000000, got {text!r}."
        )
    return int(float(match.group(1)) * unit)


def show_bytes(count: float) -> str:
    """Return a number of bytes in the unit in which it is between 1 and 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000.0:
            return f"{count:.3g} {unit}"
        count /= 1000.0
    return f"{count:.3g} TB"
