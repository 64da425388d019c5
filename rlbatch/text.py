"""Text from files and other packages, made fit for a terminal, a table or a message."""

from __future__ import annotations

MOST_SHOWN = 80
"""Characters of a value that an error message quotes."""


def escaped(text: str, keep: str = "") -> str:
    r"""Return the text with `\x1b` and the like in the place of what does not print.

    A terminal obeys control characters: they set its title, clear it, write to the clipboard or
    hide a link. Those that turn the direction of reading around, that have no width, and halves of
    a surrogate pair, which cannot be written at all, are replaced as well: whatever
    `str.isprintable` says no to.

    Args:
        text: From anywhere.
        keep: Characters to leave as they are, such as a line feed.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else _code(ord(char)) for char in text
    )


def shown(value: object) -> str:
    """Return a value as an error message quotes it: escaped, and cut where it is long."""
    text = escaped(value if isinstance(value, str) else repr(value))
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _code(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
