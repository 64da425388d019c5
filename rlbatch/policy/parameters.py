"""Parameters in a policy's name, `64` or `theta=0.6,follow=true`, checked against the rule's."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlbatch.errors import ConfigurationError

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_parameters(name: str, factory: Callable[..., Any], text: str) -> dict[str, Any]:
    """Return the keyword arguments that the text after a policy's name stands for.

    Args:
        name: The policy's name, for messages.
        factory: A dataclass or function whose annotations say what each parameter takes.
        text: `key=value,key=value`; a first part without `=` goes to the first parameter.

    Raises:
        ConfigurationError: An unknown, repeated, missing or unreadable parameter.
    """
    accepted = _accepted(factory)
    values: dict[str, Any] = {}
    for number, part in enumerate(text.split(",") if text else []):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and number == 0 and accepted:
            key, value = next(iter(accepted)), key
        if key not in accepted:
            raise ConfigurationError(f"{name} has no parameter {key!r}. {_help(name, factory)}")
        if key in values:
            raise ConfigurationError(f"{name}: {key} is given twice in {text!r}.")
        try:
            values[key] = _convert(value, accepted[key])
        except ValueError:
            raise ConfigurationError(
                f"{name}: {key} cannot be {value!r}. {_help(name, factory)}"
            ) from None
    missing = [
        key
        for key, parameter in _signature(factory).items()
        if parameter.default is inspect.Parameter.empty and key not in values
    ]
    if missing:
        raise ConfigurationError(
            f"{name} needs a value for {' and '.join(missing)}, as in {name}:{missing[0]}=... "
            f"{_help(name, factory)}"
        )
    return values


def _signature(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that can be named, without those of `*args` and `**kwargs`."""
    return {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _accepted(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return each parameter's type."""
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    return {key: hints.get(key, str) for key in _signature(factory)}


def _help(name: str, factory: Callable[..., Any]) -> str:
    types_ = _accepted(factory)
    if not types_:
        return f"{name} accepts no parameters."
    parts = [
        f"{key} ({_words(types_[key])}"
        + ("" if parameter.default is inspect.Parameter.empty else f", default {parameter.default}")
        + ")"
        for key, parameter in _signature(factory).items()
    ]
    return f"{name} accepts {', '.join(parts)}."


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> str:
    return " or ".join(map(_word, _choices(kind)))


def _word(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind))


def _convert(text: str, kind: Any) -> Any:
    """Return the text as the first of the annotation's types that takes it."""
    for one in _choices(kind):
        words = _vocabulary(one)
        if text in words:
            return words[text]
        if text.lower() in words and one in (bool, type(None)):
            return words[text.lower()]
        if one in (int, float, str):
            try:
                return one(text)
            except ValueError:
                continue
    raise ValueError(text)


def _vocabulary(kind: Any) -> dict[str, Any]:
    """Return the values that are given by words."""
    if kind is type(None):
        return {"none": None}
    if kind is bool:
        return dict(_TRUTH)
    return {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else {}
