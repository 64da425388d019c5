"""NumPy's elementwise functions, many times quicker for single numbers.

The encoder and the policies are written once, for arrays with free leading axes. In a live run
these are single numbers, for each of which a call of NumPy costs about a microsecond, and there are
hundreds of them in a decision. Here they take a few instructions of Python, with the same results:
only choices and comparisons are made in this way, never a logarithm, whose last bit may differ.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from rlbatch.signals.record import Array

_FLOAT: Final[Any] = np.float64
_ARRAY: Final[Any] = np.ndarray
_TRUTHS: Final[tuple[Any, ...]] = (np.False_, np.True_)  # not Python's, whose ~ is an integer's


def number(value: Any) -> Array:
    """Return a number, or an array of one, as NumPy's scalar and any other as an array.

    Both are of double precision. A scalar divides by zero as an array does.
    """
    kind: Any = value.__class__
    if kind is _FLOAT:
        return value
    if kind is float:
        return _FLOAT(value)
    return np.asarray(value, dtype=np.float64)[()]


def where(condition: Any, yes: Any, no: Any) -> Any:
    """Return `np.where`, of single numbers a scalar."""
    if (
        condition.__class__ is not _ARRAY
        and yes.__class__ is not _ARRAY
        and no.__class__ is not _ARRAY
    ):
        chosen: Any = yes if condition else no
        is_pythons: bool = chosen.__class__ is float
        return _FLOAT(chosen) if is_pythons else chosen
    return cast("Any", np.where(condition, yes, no))


def spread(value: Any, like: Any) -> Any:
    """Return a value for each run that `like` has an entry of."""
    if like.__class__ is not _ARRAY and value.__class__ is not _ARRAY:
        return number(value)
    return value + np.zeros_like(like)


def maximum(left: Any, right: Any) -> Any:
    """Return `np.maximum`: NaN where one of the two is."""
    if left.__class__ is not _ARRAY and right.__class__ is not _ARRAY:
        larger = left if left >= right or math.isnan(left) else right
        return larger if larger.__class__ is _FLOAT else _FLOAT(larger)
    return np.maximum(left, right)


def minimum(left: Any, right: Any) -> Any:
    """Return `np.minimum`: NaN where one of the two is."""
    if left.__class__ is not _ARRAY and right.__class__ is not _ARRAY:
        smaller = left if left <= right or math.isnan(left) else right
        return smaller if smaller.__class__ is _FLOAT else _FLOAT(smaller)
    return np.minimum(left, right)


def fmax(left: Any, right: Any) -> Any:
    """Return `np.fmax`: the other one where one is NaN."""
    if left.__class__ is not _ARRAY and right.__class__ is not _ARRAY:
        return number(left if left >= right or math.isnan(right) else right)
    return np.fmax(left, right)


def fmin(left: Any, right: Any) -> Any:
    """Return `np.fmin`: the other one where one is NaN."""
    if left.__class__ is not _ARRAY and right.__class__ is not _ARRAY:
        return number(left if left <= right or math.isnan(right) else right)
    return np.fmin(left, right)


def clip(value: Any, low: Any, high: Any) -> Any:
    """Return `np.clip`: the upper limit where the limits contradict each other."""
    if value.__class__ is _ARRAY:
        return np.clip(value, low, high)
    return minimum(maximum(value, low), high)


def isfinite(value: Any) -> NDArray[np.bool_]:
    """Return `np.isfinite`."""
    if value.__class__ is not _ARRAY:
        return _TRUTHS[math.isfinite(value)]
    return np.isfinite(value)


def isnan(value: Any) -> NDArray[np.bool_]:
    """Return `np.isnan`."""
    if value.__class__ is not _ARRAY:
        return _TRUTHS[math.isnan(value)]
    return np.isnan(value)
