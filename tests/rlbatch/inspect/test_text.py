"""Nothing that a terminal obeys is printed; numbers fit their columns."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.inspect.text import compact, number, printable


@given(st.text(alphabet=st.characters(codec=None), max_size=300))
def test_what_is_printed_moves_no_cursor_and_hides_nothing(text: str) -> None:
    shown = printable(text)

    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer ±", "plain, größer ±"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),  # the clipboard
        ("a\x9b2Jb", "a\\x9b2Jb"),  # clears the screen, in one byte
        ("abc\u202edef", "abc\\u202edef"),  # right to left
        ("two\nlines\r", "two lines\\x0d"),
        ("x" * 501, "x" * 500 + "..."),
    ],
)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.floats(-1e90, 1e90) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_compact_number_has_seven_characters_and_is_near(value: float) -> None:
    text = compact(value)

    assert len(text) <= (7 if value == 0 or not 0 < abs(value) < 1e-9 else 9)
    if math.isfinite(value):
        units = {"k": 1e3, "M": 1e6, "G": 1e9}
        read = float(text.rstrip("kMG")) * units.get(text[-1], 1.0)
        assert math.isclose(read, value, rel_tol=0.06, abs_tol=1e-300)


@pytest.mark.parametrize(
    ("value", "short", "long"),
    [
        (0.0, "0", "0"),
        (0.123456, "0.1235", "0.1235"),
        (4e-4, "4.0e-4", "4.00e-4"),
        (64_000, "64.0k", "64,000"),
        (1_234_567, "1.2M", "1,234,567"),
        (999_999, "1.0M", "999,999"),
        (math.nan, "-", "-"),
        (math.inf, "inf", "inf"),
        (None, "-", "-"),
    ],
)
def test_numbers(value: float | None, short: str, long: str) -> None:
    assert compact(value) == short
    assert number(value) == long
