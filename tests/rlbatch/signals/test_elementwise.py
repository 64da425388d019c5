"""Single numbers give what NumPy's own functions give, for every pair of difficult values."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from rlbatch.signals import elementwise

VALUES = (np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 1e-320, 1e308)
PAIRS = list(product(VALUES, VALUES))


@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin"])
@pytest.mark.parametrize("kind", [float, np.float64])
def test_choices_between_two_are_numpys(name: str, kind: Callable[[float], Any]) -> None:
    ours, numpys = getattr(elementwise, name), getattr(np, name)
    for left, right in PAIRS:
        found = ours(kind(left), right)
        assert type(found) is np.float64
        np.testing.assert_equal(found, numpys(left, right))
    left, right = np.array(PAIRS).T
    np.testing.assert_array_equal(ours(left, right), numpys(left, right))
    np.testing.assert_array_equal(ours(left, 0.5), numpys(left, 0.5))
    np.testing.assert_array_equal(ours(0.5, right), numpys(0.5, right))


@pytest.mark.parametrize("name", ["isfinite", "isnan"])
def test_truths_are_numpys_and_can_be_inverted(name: str) -> None:
    ours, numpys = getattr(elementwise, name), getattr(np, name)
    for value, kind in product(VALUES, (float, np.float64)):
        assert ours(kind(value)) == numpys(value)
        assert ~ours(kind(value)) == (not numpys(value))
    np.testing.assert_array_equal(ours(np.array(VALUES)), numpys(np.array(VALUES)))


def test_where_takes_what_numpy_takes() -> None:
    for (yes, no), condition in product(PAIRS, (True, False)):
        found = elementwise.where(np.bool_(condition), yes, np.float64(no))
        assert type(found) is np.float64
        np.testing.assert_equal(found, np.where(condition, yes, no))
    assert elementwise.where(np.True_, np.False_, np.True_) is np.False_
    row = np.array(VALUES)
    for condition in (np.True_, np.False_, row > 0):
        for yes, no in ((row, 1.0), (1.0, row), (row, row[::-1])):
            found = elementwise.where(condition, yes, no)
            np.testing.assert_array_equal(found, np.where(condition, yes, no))
            assert found.shape == row.shape


def test_clip_is_numpys() -> None:
    for value in VALUES:
        np.testing.assert_equal(
            elementwise.clip(np.float64(value), -1.0, 2.0), np.clip(value, -1, 2)
        )
        np.testing.assert_equal(elementwise.clip(np.float64(value), 3.0, 2.0), np.clip(value, 3, 2))
    row = np.array(VALUES)
    np.testing.assert_array_equal(elementwise.clip(row, -1.0, 2.0), np.clip(row, -1.0, 2.0))


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2.0), np.array(2.0), np.array(2), np.int64(2)]
)
def test_a_number_divides_by_zero_as_an_array_does(value: Any) -> None:
    found = elementwise.number(value)

    assert type(found) is np.float64
    with np.errstate(divide="ignore"):
        assert found / 0.0 == np.inf


def test_an_array_stays_an_array_of_double_precision() -> None:
    found = elementwise.number(np.arange(3, dtype=np.float32))

    assert found.dtype == np.float64
    assert found.tolist() == [0.0, 1.0, 2.0]


def test_spread_gives_an_entry_a_run() -> None:
    assert elementwise.spread(2.0, np.float64(5.0)) == 2.0
    assert elementwise.spread(2.0, np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert elementwise.spread(np.arange(3.0), np.float64(1.0)).tolist() == [0.0, 1.0, 2.0]
