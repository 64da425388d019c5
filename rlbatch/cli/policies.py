"""`rlbatch policies`: what can decide."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from rlbatch.cli import _shared


@dataclass(frozen=True)
class Command:
    """List the policies.

    A policy is `default` (the trained one that ships with rlbatch), the path of a policy file, or a
    rule with parameters, such as fixed:64 or noise-scale:theta=0.6.

    For example: rlbatch policies
    """

    json: bool = False
    """Print one JSON object a line."""

    def run(self) -> int:
        """Print the policies."""
        rows = [_row(name) for name in _names()]
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


def _row(name: str) -> dict[str, str]:
    from importlib import import_module

    from rlbatch.policy.registry import BUILT_IN, DEFAULT

    if name == DEFAULT:
        return {"policy": name, "parameters": "", "what": "The trained policy of this rlbatch."}
    if name not in BUILT_IN:
        return {"policy": name, "parameters": "", "what": "From an installed package."}
    module, _, attribute = BUILT_IN[name].partition(":")
    factory = getattr(import_module(module), attribute)
    parameters = [
        str(parameter).partition(":")[0]
        + ("" if parameter.default is inspect.Parameter.empty else f"={parameter.default}")
        for parameter in inspect.signature(factory).parameters.values()
    ]
    what = (inspect.getdoc(factory) or "").partition("\n")[0]
    return {"policy": name, "parameters": ", ".join(parameters), "what": what}
