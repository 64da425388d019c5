"""What users give as arguments, checked where it is given and turned into plain Python values."""

from __future__ import annotations

import math
import operator
import os
from typing import Any, TypeVar, cast

from rlbatch.errors import ConfigurationError

T = TypeVar("T")


def shown(value: object) -> str:
    """Return how a message names what was given: a number or a text itself, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float) or _is_scalar(value):
        try:
            text = repr(value)
        except ValueError:  # of an int with thousands of digits
            return type(value).__name__
        return text if len(text) < 60 else f"{text[:57]}..."
    return "None" if value is None else type(value).__name__


def whole_number(value: object) -> int | None:
    """Return as an int what `operator.index` takes, but for truth values; None for all else.

    So an integer of NumPy, or an array or tensor that holds a single one, is as good as an int. A
    tensor on a device is waited for.
    """
    if _is_truth(value):
        return None
    try:
        return operator.index(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        return None


def real_number(value: object) -> float | None:
    """Return a number as Python's own, an int as an int; None for what is none, and for NaN."""
    if not isinstance(value, int | float) and _is_scalar(value):
        value = cast("Any", value).item()
    if _is_truth(value) or not isinstance(value, int | float):
        return None
    try:
        return None if math.isnan(value) else value
    except OverflowError:  # of an int that no float can hold
        return None


def require_whole(name: str, value: object, what: str, least: int = 1) -> int:
    """Return a whole number as an int.

    Args:
        name: Of the argument, for the message.
        value: That was given.
        what: It should be, for the message: `a whole number of samples`.
        least: The smallest.

    Raises:
        ConfigurationError: It is none, or smaller.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ConfigurationError(f"{name} must be {what}, at least {least}; got {shown(value)}.")
    return number


def require_switch(name: str, value: object) -> bool:
    """Return what is True or False, also NumPy's.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(value, bool):
        return value
    if _is_truth(value) and _is_scalar(value):
        return bool(value)
    raise ConfigurationError(f"{name} must be True or False; got {shown(value)}.")


def require_kind(name: str, value: object, kind: type[T], hint: str) -> T:
    """Return what is an object of a class.

    Args:
        name: Of the argument, for the message.
        value: That was given.
        kind: The class.
        hint: What to do, for the message: a sentence.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"{name} must be of the class {kind.__name__}; got {shown(value)}. {hint}"
        )
    return value


def require_function(name: str, value: Any, what: str) -> None:
    """Refuse what cannot be called; None passes, and a class does not.

    Args:
        name: Of the argument, for the message.
        value: That was given.
        what: It should be, for the message: `a function of a batch`.

    Raises:
        ConfigurationError: It is neither a function nor None.
    """
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise ConfigurationError(f"{name} must be {what}, or None; got {shown(value)}.")


def require_path(name: str, value: Any, what: str, *, optional: bool = True) -> None:
    """Refuse what is neither a text nor a path.

    Args:
        name: Of the argument, for the message.
        value: That was given.
        what: It should be, for the message: `a folder`.
        optional: None passes, too.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None and optional:
        return
    if isinstance(value, type) or not isinstance(value, str | os.PathLike):
        or_none = ", or None" if optional else ""
        raise ConfigurationError(f"{name} must be {what}{or_none}; got {shown(value)}.")


def _is_truth(value: object) -> bool:
    """Whether a value is True or False, also of NumPy or in a tensor."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def _is_scalar(value: object) -> bool:
    """Whether a value is a number of NumPy, or an array or tensor without dimensions."""
    known = not isinstance(value, type) and hasattr(value, "dtype") and hasattr(value, "item")
    return known and getattr(value, "ndim", None) == 0
