"""Texts and numbers from files, made fit to print.

A log may come from anywhere. What is printed of it goes through `printable`: a terminal would
otherwise obey escape sequences in it (title, clipboard, links, a cleared screen).
"""

from __future__ import annotations

import math
import unicodedata

from rlbatch.log.decision_record import DecisionRecord

NO_VALUE = "-"
# Format characters (Cf) reorder or hide text; surrogates and private ones print as anything.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def printable(value: object, longest: int = 500) -> str:
    r"""Return a text without characters that a terminal obeys; they show as `\x1b`.

    Args:
        value: Anything; its `str` is taken.
        longest: Characters after which it is cut.
    """
    text = str(value)
    cut = f"{text[:longest]}..." if len(text) > longest else text
    return "".join(_shown(character) for character in cut)


def _shown(character: str) -> str:
    if character == "\n":
        return " "
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def number(value: float | None, digits: int = 4) -> str:
    """Return significant digits with separators; a dash where there is no number."""
    if value is None or math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value != 0 and not 1e-3 <= abs(value) < 1e15:
        return _exponent(f"{value:.{digits - 2}e}")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def compact(value: float | None) -> str:
    """Return at most six characters: `0.1235`, `64.0k`, `1.2M`, `4.0e-4`."""
    if value is None or math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e12):
        return _exponent(f"{value:.1e}")
    if size < 1e4:
        texts = (f"{value:.{digits}g}" for digits in (4, 3, 2))
        return next(text for text in texts if len(text) <= 6 + (value < 0))
    for limit, unit, letter in ((1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if size < limit * 0.9995:
            scaled = value / unit
            return f"{scaled:.1f}{letter}" if abs(scaled) < 100 else f"{scaled:.0f}{letter}"
    return _exponent(f"{value:.1e}")


def count(value: float, *, short: bool) -> str:
    """Return a whole number, abbreviated where space is short."""
    return compact(value) if short else f"{value:,.0f}"


def signal(record: DecisionRecord, name: str) -> float:
    """Return one number of a record's signals; NaN where it is not there or is a list."""
    value = record.signals.get(name)
    return value if isinstance(value, float) else math.nan


def _exponent(text: str) -> str:
    """Shorten `4.0e-04` to `4.0e-4`."""
    mantissa, _, power = text.partition("e")
    return f"{mantissa}e{int(power)}"
