"""`rlbatch policies`: what can decide."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from rlbatch.cli import _shared

_TRAINED = {
    "default": "The trained policy of this rlbatch, for runs with a target.",
    "epochs": "The trained policy of this rlbatch, for runs of so many epochs.",
}


@dataclass(frozen=True)
class Command:
    """List the policies.

    A policy is `default` or `epochs` (the trained ones that ship with rlbatch), the path of a
    policy file, or a rule with parameters, such as fixed:64 or noise-scale:theta=0.6.

    For example: rlbatch policies
    """

    json: bool = False
    """Print one JSON object a line."""

    def run(self) -> int:
        """Print the policies."""
        rows = [_row(name) for name in _names()]
        _note_ignored()
        if self.json:
            _shared.print_json_lines(rows)
            return 0
        cells = [[row["policy"], row["parameters"], row["what"]] for row in rows]
        columns = ["policy", "parameters", "what it does"]
        _shared.print_table("Policies", columns, cells, text=columns)
        return 0


def _names() -> tuple[str, ...]:
    from rlbatch.policy.registry import policy_names

    return policy_names()


def _note_ignored() -> None:
    """Say which policies of other packages can never be named."""
    from rlbatch.policy.plugins import find_plugins, provider
    from rlbatch.policy.registry import BUILT_IN, PRETRAINED

    for name, points in find_plugins().items():
        if name in (*PRETRAINED, *BUILT_IN):
            _shared.note(
                f"rlbatch: {name!r} of {provider(points)} is not used: rlbatch's own policy of "
                "that name comes first."
            )


def _row(name: str) -> dict[str, str]:
    from rlbatch.errors import ConfigurationError
    from rlbatch.policy.registry import PRETRAINED, policy_factory

    if name in PRETRAINED:
        return {"policy": name, "parameters": "", "what": _TRAINED[name]}
    try:
        parameters, what = _described(policy_factory(name))
    except ConfigurationError as error:  # another package's: the others can still be named
        _shared.note(f"rlbatch: {error}")
        parameters, what = "", "(cannot be loaded)"
    return {"policy": name, "parameters": parameters, "what": f"{what}{_origin(name)}".strip()}


def _described(factory: Callable[..., object]) -> tuple[str, str]:
    try:
        accepted = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # made in C, or by another package in a strange way
        accepted = ()
    parameters = [
        str(parameter).partition(":")[0]
        + ("" if parameter.default is inspect.Parameter.empty else f"={parameter.default}")
        for parameter in accepted
    ]
    return ", ".join(parameters), (inspect.getdoc(factory) or "").partition("\n")[0]


def _origin(name: str) -> str:
    from rlbatch.policy.plugins import find_plugins, provider
    from rlbatch.policy.registry import BUILT_IN

    return "" if name in BUILT_IN else f" [{provider(find_plugins()[name])}]"
