"""Parameters in a policy's name, `64` or `theta=0.6,follow=true`, checked against the rule's."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

from rlbatch.errors import ConfigurationError

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_parameters(name: str, factory: Callable[..., Any], text: str) -> dict[str, Any]:
    """Return the keyword arguments that the text after a policy's name stands for.

    Args:
        name: The policy's name, for messages.
        factory: A dataclass or function whose annotations say what each parameter takes.
        text: `key=value,key=value`; a first part without `=` goes to the first parameter.

    Raises:
        ConfigurationError: An unknown, repeated or unreadable parameter.
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
    return values


def _accepted(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return each parameter's type."""
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    return {key: hints.get(key, str) for key in inspect.signature(factory).parameters}


def _help(name: str, factory: Callable[..., Any]) -> str:
    types_ = _accepted(factory)
    if not types_:
        return f"{name} accepts no parameters."
    parts = [
        f"{key} ({_words(types_[key])}"
        + ("" if parameter.default is inspect.Parameter.empty else f", default {parameter.default}")
        + ")"
        for key, parameter in inspect.signature(factory).parameters.items()
    ]
    return f"{name} accepts {', '.join(parts)}."


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> str:
    return " or ".join("none" if one is type(None) else one.__name__ for one in _choices(kind))


def _convert(text: str, kind: Any) -> Any:
    """Return the text as the first of the annotation's types that takes it."""
    for one in _choices(kind):
        if one is type(None):
            if text.lower() == "none":
                return None
        elif one is bool:
            if text.lower() in _TRUTH:
                return _TRUTH[text.lower()]
        elif one in (int, float, str):
            try:
                return one(text)
            except ValueError:
                continue
    raise ValueError(text)
