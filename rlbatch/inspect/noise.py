"""The noise scale of a log in words."""

from __future__ import annotations

import math

from rlbatch.inspect.text import NO_VALUE, compact, number
from rlbatch.noise_average import NoiseScale


def noise_text(scale: NoiseScale, *, short: bool = False) -> str:
    """Return `1,000 ± 80`, `> 1,000` or a dash; abbreviated where space is short."""
    shown = compact if short else number
    if math.isnan(scale.value):
        return NO_VALUE
    if scale.is_bound:
        return f">{shown(scale.value)}" if short else f"> {shown(scale.value)}"
    if math.isnan(scale.error):
        return shown(scale.value)
    between = "±" if short else " ± "
    return f"{shown(scale.value)}{between}{_rounded(scale.error, short=short)}"


def _rounded(error: float, *, short: bool) -> str:
    """Return an error with two significant digits: more would be noise."""
    if error <= 0 or not math.isfinite(error):
        return compact(error)
    places = 1 - math.floor(math.log10(error))
    rounded = round(error, places)
    return compact(rounded) if short else number(rounded)
