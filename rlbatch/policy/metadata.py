"""The metadata of a policy file: which entries there are, and what each may be.

Checked before a weight is read, so that a file cannot ask for more than a policy needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any, cast

from rlbatch.policy.card import PolicyCard
from rlbatch.text import shown

NETS = ("policy", "value")
CARD_KEYS = tuple(field.name for field in fields(PolicyCard))
KEYS = (
    *("format_version", "schema_version", "observation_names", "layer_sizes", "activation"),
    *("action_grid", "masked", "sample", *CARD_KEYS, "checksum"),
)
LATER_KEYS = (
    "goodput_slack",
    "noise_ceiling",
    "keeps_steps",
    "memory_sizes",
    "near_base",
)  # files without them are older, and mean none

MOST_MEMBERS = 64
MOST_LAYERS = 32
MOST_UNITS = 1 << 16  # of a layer
MOST_ACTIONS = 1024

_MOST_FEATURES = 4096
_Check = tuple[Callable[[Any], bool], str]


def complaints(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with entries, each by itself.

    Args:
        content: Entry to value, as JSON has it; entries that are unknown are passed over.
    """
    for key, (is_right, expected) in _CHECKS.items():
        if key in content and not is_right(content[key]):
            yield f"{key} is malformed: expected {expected}, got {shown(content[key])}"


def expected_shapes(layer_sizes: list[dict[str, list[int]]]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor of networks of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, member in enumerate(layer_sizes):
        for net in NETS:
            for index, (inputs, outputs) in enumerate(pairwise(member[net])):
                name = f"member.{number}.{net}.{index}"
                shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)
    return shapes


def memory_shapes(sizes: list[int] | None) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor of a memory; nothing of a policy without one.

    Args:
        sizes: Units of its layers, the inputs of the first one before them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, units) in enumerate(pairwise(sizes or [])):
        name = f"memory.{index}"
        shapes[f"{name}.inputs"] = (4 * units, inputs)
        shapes[f"{name}.recurrent"] = (4 * units, units)
        shapes[f"{name}.bias"] = (4 * units,)
    return shapes


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, not negative; True and 1.0 are none."""
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**1000  # more has no place in a float
    return type(value) is float and math.isfinite(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(is_right: Callable[[Any], bool], least: int, most: int) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        parts = cast("list[Any]", value)
        return least <= len(parts) <= most and all(map(is_right, parts))

    return check


def _is_size(value: Any) -> bool:
    return is_count(value) and 1 <= value <= MOST_UNITS


def _is_member(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    member = cast("dict[str, Any]", value)
    sizes = _list_of(_is_size, 2, MOST_LAYERS + 1)
    return member.keys() == set(NETS) and all(sizes(member[net]) for net in NETS)


def _is_activation(value: Any) -> bool:
    return _is_text(value) or _list_of(_is_text, 1, MOST_MEMBERS)(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_slack(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_memory(value: Any) -> bool:
    return value is None or _list_of(_is_size, 2, MOST_LAYERS + 1)(value)


_NUMBERS = (_list_of(_is_number, 0, _MOST_FEATURES), "a list of finite numbers")
_NAMES = (_list_of(_is_text, 0, 16), "a list of a few names")
_BOOL = (_is_bool, "true or false")
_TEXT = (_is_text, "a text")
_CHECKS: dict[str, _Check] = {
    "layer_sizes": (
        _list_of(_is_member, 1, MOST_MEMBERS),
        f'1 to {MOST_MEMBERS} of {{"policy": [...], "value": [...]}}, each list with the units of '
        f"2 to {MOST_LAYERS + 1} layers, 1 to {MOST_UNITS} each",
    ),
    "activation": (_is_activation, "a name, or one for each member"),
    "action_grid": (
        _list_of(_is_number, 1, MOST_ACTIONS),
        f"a list of 1 to {MOST_ACTIONS} finite numbers",
    ),
    "masked": _BOOL,
    "sample": _BOOL,
    "keeps_steps": _BOOL,
    "near_base": _BOOL,
    "goodput_slack": (_is_slack, "a finite number or null"),
    "noise_ceiling": (_is_slack, "a finite number or null"),
    "memory_sizes": (
        _is_memory,
        f"null, or the units of 2 to {MOST_LAYERS + 1} layers, 1 to {MOST_UNITS} each",
    ),
    "objectives": _NAMES,
    "couplings": _NAMES,
    "noise_rate": (_is_number, "a finite number"),
    "recipe": _TEXT,
    "recipe_hash": _TEXT,
    "results": (_is_mapping, "an object"),
    "observation_low": _NUMBERS,
    "observation_high": _NUMBERS,
    "rlbatch_version": _TEXT,
    "checksum": _TEXT,
}
