"""Saved states are loaded whole or not at all.

A state comes from a file: of another run, of another version, or damaged. `require_like` refuses
what is not of the kind that an object would save itself, and `all_or_nothing` puts the object back
as it was where something is wrong that only loading shows.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rlbatch.errors import ConfigurationError, RlbatchError
from rlbatch.text import shown

_PACKAGE = __name__.partition(".")[0]
_WRONG = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_ARRAY = {"dtype", "shape", "data"}  # of `rlbatch.policy.state.pack_state`
_LARGEST = 2**63

STATE_VERSION = 2
"""Of what a controller saves."""

Undo = Callable[[], None]


@contextmanager
def all_or_nothing(*owners: object) -> Generator[None]:
    """Put everything back as it was where the block fails.

    That is: the attributes of these objects and of those of rlbatch within them, containers,
    samplers and random generators among them, and the global random states. Tensors are taken to be
    replaced, never changed in place, by what loads a state.

    Args:
        owners: What a state is loaded into.

    Raises:
        ConfigurationError: The block failed with an error that a damaged state leads to.
    """
    undo = [_global_generators()]
    _remember(list(owners), undo, set())
    try:
        yield
    except BaseException as error:
        for step in reversed(undo):
            step()
        if isinstance(error, RlbatchError) or not isinstance(error, _WRONG):
            raise
        raise ConfigurationError(
            f"The state is damaged or incomplete ({type(error).__name__}: {shown(str(error))}). "
            "Nothing of it was taken. Resume from another checkpoint, or start anew."
        ) from error


def require_like(state: Any, own: Any, where: str = "the state") -> None:
    """Refuse a state that is not of the kind of one's own.

    Fields have to be the same ones, whole numbers, texts and truth values to stay what they are,
    counts not to be negative, arrays and tensors to keep type and shape. What is None here may be
    anything, fields and lists may be None, and those that are empty here may be filled.

    Args:
        state: From a file.
        own: What the object would save now.
        where: How to name the state in a message.

    Raises:
        ConfigurationError: It differs, and in what.
    """
    if own is None or (state is None and isinstance(own, Mapping | Tensor | list | tuple)):
        return
    if isinstance(own, Mapping):
        _require_fields(state, cast("Mapping[Any, Any]", own), where)
    elif isinstance(own, Tensor):
        if not isinstance(state, Tensor) or (state.dtype, state.shape) != (own.dtype, own.shape):
            _refuse(where, f"a tensor {own.dtype} of shape {tuple(own.shape)}", state)
    elif isinstance(own, list | tuple):
        if not isinstance(state, list | tuple):
            _refuse(where, "a list", state)
    elif not _same_kind(state, own):
        _refuse(where, f"a {type(own).__name__}", state)
    elif type(own) is int and not 0 <= cast("int", state) < _LARGEST:
        _refuse(where, "a count", state)


def check_state(state: Mapping[str, Any], base_batch_size: int) -> None:
    """Refuse a state that a run cannot go on from.

    Raises:
        ConfigurationError: It is of another version or batch size.
    """
    is_state = isinstance(state, Mapping)
    version = state.get("version") if is_state else "no state"
    if not isinstance(version, int) or version != STATE_VERSION:
        raise ConfigurationError(
            f"A controller state of version {STATE_VERSION} was expected, got "
            f"{shown(repr(version))}. Resume with the rlbatch that saved it."
        )
    saved = state.get("base_batch_size")
    if not isinstance(saved, int) or saved != base_batch_size:
        raise ConfigurationError(
            f"The state was saved with batch size {state.get('base_batch_size')}, and this "
            f"controller was made for {base_batch_size}. Make it for the same one."
        )


def _require_fields(state: Any, own: Mapping[Any, Any], where: str) -> None:
    if not isinstance(state, Mapping):
        _refuse(where, "named fields", state)
    fields = cast("Mapping[Any, Any]", state)
    if own.keys() == _ARRAY:
        _require_array(fields, own, where)
        return
    if own and fields.keys() != own.keys():
        _refuse(where, f"the fields {', '.join(map(str, own))}", ", ".join(map(str, fields)))
    for name in own:
        require_like(fields[name], own[name], f"{where}: {name}")


def _require_array(state: Mapping[Any, Any], own: Mapping[Any, Any], where: str) -> None:
    same = state.keys() == _ARRAY and all(state[key] == own[key] for key in ("dtype", "shape"))
    if not same:
        _refuse(where, f"an array {own['dtype']} of shape {own['shape']}", state)
    try:
        array = np.array(state["data"])
    except (TypeError, ValueError):  # lists of unequal length
        array = np.array(None)
    numbers = array.dtype.kind in "biuf" or array.size == 0
    if not numbers or array.shape != (int(np.prod(own["shape"])),):
        _refuse(f"{where}: data", "as many numbers as the shape says", state["data"])


def _same_kind(state: Any, own: Any) -> bool:
    if type(own) is float:
        return type(state) in (float, int)
    return type(state) is type(own)


def _refuse(where: str, expected: str, got: object) -> None:
    raise ConfigurationError(
        f"In {where}, expected {expected}, got {shown(got)}. The state is damaged, or of another "
        "run or rlbatch. Nothing of it was taken: resume from another checkpoint, or start anew."
    )


def _remember(found: list[object], undo: list[Undo], seen: set[int]) -> None:
    """Collect what puts objects back, following what they hold."""
    while found:
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Generator):
            undo.append(_setter(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            undo.append(_setter(value.setstate, value.getstate()))
        elif isinstance(value, dict | list | deque | set):
            found.extend(_within(cast("Any", value), undo))
        elif isinstance(value, Sampler) or type(value).__module__.partition(".")[0] == _PACKAGE:
            attributes = getattr(value, "__dict__", None)
            if attributes is not None:
                found.append(attributes)


def _within(container: Any, undo: list[Undo]) -> list[object]:
    """Remember a container's content and return what may hold more."""
    copy = container.copy()

    def put_back() -> None:
        container.clear()
        if isinstance(container, dict | set):
            container.update(copy)
        else:
            container.extend(copy)

    undo.append(put_back)
    values = copy.values() if isinstance(copy, dict) else copy
    return [value for value in values if hasattr(value, "__dict__") or _is_holder(value)]


def _is_holder(value: object) -> bool:
    return isinstance(value, dict | list | deque | set | torch.Generator | random.Random)


def _setter(put: Callable[[Any], object], state: Any) -> Undo:
    return lambda: (put(state), None)[1]


def _global_generators() -> Undo:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state(legacy=False)

    def put_back() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)

    return put_back
