"""Policy states as JSON-compatible values, for checkpoints and logs."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError


def pack_state(state: Any) -> Any:
    """Return a state as lists, dictionaries, strings and numbers; nothing is rounded.

    Args:
        state: What `Policy.initial_state` or `Policy.decide` returned: tuples, NumPy arrays and
            plain numbers.

    Raises:
        ConfigurationError: The state holds something else.
    """
    if state is None or isinstance(state, bool):
        return state
    # Exact types: NumPy's float64 is a float too, and loaders that run no code refuse it.
    if isinstance(state, int):
        return int(state)
    if isinstance(state, float):
        return float(state)
    if isinstance(state, str):
        return str.__str__(state)
    if isinstance(state, tuple | list):
        return [pack_state(part) for part in cast(tuple[Any, ...], state)]
    if isinstance(state, np.ndarray | np.generic):
        array: NDArray[Any] = np.asarray(cast(Any, state))
        if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:  # more would be rounded
            return {
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
    raise ConfigurationError(
        "A policy state is made of tuples, numeric NumPy arrays and plain numbers; got "
        f"{type(cast(object, state)).__name__}: {state!r}."
    )


def unpack_state(packed: Any) -> Any:
    """Return the state that `pack_state` packed; named tuples come back as plain ones.

    Raises:
        ConfigurationError: It is not what `pack_state` returns.
    """
    if isinstance(packed, list | tuple):
        return tuple(unpack_state(part) for part in cast(tuple[Any, ...], packed))
    if isinstance(packed, dict):
        array = cast(dict[str, Any], packed)
        return _unpack_array(array)
    return packed


def _unpack_array(packed: dict[str, Any]) -> NDArray[Any]:
    try:
        data, dtype = list(map(_number, packed["data"])), np.dtype(packed["dtype"])
        if dtype.kind not in "biuf":
            raise TypeError(f"{dtype} is no type of numbers")
        return np.array(data, dtype=dtype).reshape(packed["shape"])
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"A packed array of a policy state is damaged ({type(error).__name__}: {error}). "
            "Resume from another checkpoint, or start anew."
        ) from error


def _number(value: Any) -> float | int | bool:
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no number")
    return value
