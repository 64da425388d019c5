"""How options are written, parsed and explained, where tyro's own way would puzzle people."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

_UNSET = ["unset"]


def make_registry() -> Any:
    """Return the rules: an option that may be left out is given as one of its type.

    `--seeds INT`, unset unless it is given; by tyro's own rule it would be `--seeds {None}|INT`,
    and a wrong value would be told of as one that fits neither. One of any number of values is
    unset, too, where there are none. A path may begin with `~`.
    """
    constructors: Any = import_module("tyro.constructors")  # its types are unknown in part

    def optional(info: Any) -> Any:
        kinds = get_args(info.type)
        if len(kinds) != 2 or type(None) not in kinds:
            return None
        kind = kinds[0] if kinds[1] is type(None) else kinds[1]
        inner = constructors.PrimitiveTypeInfo.make(kind, info.markers)
        spec = constructors.ConstructorRegistry.get_primitive_spec(inner)
        return _with_none(spec) if isinstance(spec, constructors.PrimitiveConstructorSpec) else spec

    asking: set[str] = set()  # tyro itself, whose answer is changed

    def changed(info: Any, rule: str, change: Callable[[Any], Any]) -> Any:
        if rule in asking:
            return None
        asking.add(rule)
        try:
            spec = constructors.ConstructorRegistry.get_primitive_spec(info)
        finally:
            asking.remove(rule)
        return change(spec) if isinstance(spec, constructors.PrimitiveConstructorSpec) else spec

    def several(info: Any) -> Any:
        return changed(info, "tuple", _with_nothing) if get_origin(info.type) is tuple else None

    def path(info: Any) -> Any:
        return changed(info, "path", _with_home) if info.type is Path else None

    registry = constructors.ConstructorRegistry()
    for rule in (optional, several, path):
        registry.primitive_rule(rule)
    return registry


def _with_none(spec: Any) -> Any:
    """Let None stand for an option that is not given."""

    def is_instance(value: object) -> Any:
        return value is None or spec.is_instance(value)

    def texts(value: object) -> list[str]:
        return _UNSET if value is None else spec.str_from_instance(value)

    return replace(spec, is_instance=is_instance, str_from_instance=texts)


def _with_nothing(spec: Any) -> Any:
    """Let the help say that nothing is given, instead of saying nothing."""

    def texts(value: object) -> list[str]:
        return spec.str_from_instance(value) or _UNSET

    return replace(spec, str_from_instance=texts)


def _with_home(spec: Any) -> Any:
    """Let `~` stand for the home folder: shells leave it alone in `--out=~/here`."""

    def instance(texts: list[str]) -> Path:
        return Path(os.path.expanduser(texts[0]))  # as it is for a user who is not known

    return replace(spec, instance_from_str=instance)


def reflow_help(command: type[Any]) -> str:
    """Let a command's texts be folded to the terminal; their lines in the source are no lines.

    Tyro reads the texts below fields from the source and keeps their line breaks; `metadata` comes
    first.

    Returns:
        The command's description, a line for each paragraph.
    """
    texts = _field_texts(command)
    for field in fields(command):
        if field.name in texts and "help" not in field.metadata:
            field.metadata = MappingProxyType({**field.metadata, "help": texts[field.name]})
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _field_texts(command: type[Any]) -> dict[str, str]:
    """Return the text below each field in the source of a class, on one line."""
    made = ast.parse(textwrap.dedent(inspect.getsource(command))).body[0]
    body = made.body if isinstance(made, ast.ClassDef) else []
    texts: dict[str, str] = {}
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts
