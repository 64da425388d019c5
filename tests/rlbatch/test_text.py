"""Texts from elsewhere, on the way to a terminal."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rlbatch.text import MOST_SHOWN, escaped, shown

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x9d0;owned\x9c",
    "direction": "gnp.\u202egnp.exe",
    "line": "fine\r\x1b[Kforged",
    "half a character": "\ud83d",
    "no width": "fi\u200bxed",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = escaped(text)
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u200b\ud800-\udfff]", shown) is None
    assert "\\x" in shown or "\\u" in shown


@pytest.mark.parametrize("text", ["", "fixed:64", "Größe 4 µs, 日本語 ≤ 0.5", "[bold]", "a\\b"])
def test_what_prints_stays(text: str) -> None:
    assert escaped(text) == text


def test_codes_have_the_digits_that_python_gives_them() -> None:
    assert escaped("\x1b\x9b\u202e\U000e0001") == "\\x1b\\x9b\\u202e\\U000e0001"
    assert escaped("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_can_be_printed_and_read_back(text: str) -> None:
    safe = escaped(text)
    assert safe.isprintable()
    assert escaped(safe) == safe
    if "\\" not in text:
        back = re.sub(
            r"\\(?:x(..)|u(....)|U(.{8}))",
            lambda found: chr(int(found[1] or found[2] or found[3], 16)),
            safe,
        )
        assert back == text


def test_long_values_are_cut() -> None:
    assert shown("fixed") == "fixed"
    assert shown(["\x1b"]) == "['\\x1b']"
    assert len(shown("\x1b" * 1000)) == MOST_SHOWN
    assert shown(range(3)) == "range(0, 3)"
