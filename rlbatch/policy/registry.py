"""From a name to a policy: `default`, a policy file, or a rule such as `fixed:64`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from rlbatch.errors import ConfigurationError, PolicyFileError, UnknownNameError
from rlbatch.policy.base import Policy
from rlbatch.policy.file import load_any_policy as load_policy_file
from rlbatch.policy.parameters import parse_parameters
from rlbatch.policy.plugins import find_plugins, load_plugin, make_plugin

# Text, not imports: `rlbatch.policy` does not depend on `rlbatch.agents`, and nothing is loaded
# before it is named.
BUILT_IN: Mapping[str, str] = {
    "adadamp": "rlbatch.agents.rules.adadamp:AdaDamp",
    "branches": "rlbatch.agents.rules.branches:Branches",
    "cabs": "rlbatch.agents.rules.cabs:Cabs",
    "divebatch": "rlbatch.agents.rules.divebatch:DiveBatch",
    "fixed": "rlbatch.agents.rules.fixed:Fixed",
    "geometric": "rlbatch.agents.rules.geometric:Geometric",
    "goodput": "rlbatch.agents.rules.goodput:Goodput",
    "late-switch": "rlbatch.agents.rules.late_switch:LateSwitch",
    "noise-scale": "rlbatch.agents.rules.noise_scale:NoiseScale",
    "norm-test": "rlbatch.agents.rules.norm_test:NormTest",
    "padadamp": "rlbatch.agents.rules.adadamp:PadaDamp",
    "plateau": "rlbatch.agents.rules.plateau:Plateau",
    "quarter-half-whole": "rlbatch.agents.rules.quarter_half_whole:QuarterHalfWhole",
    "radadamp": "rlbatch.agents.rules.adadamp:RadaDamp",
    "ramp": "rlbatch.agents.rules.ramp:Ramp",
    "random": "rlbatch.agents.rules.random_walk:RandomWalk",
    "saving-ramp": "rlbatch.agents.rules.saving_ramp:SavingRamp",
    "seesaw": "rlbatch.agents.rules.seesaw:Seesaw",
    "seesaw-noise": "rlbatch.agents.rules.seesaw_noise:SeesawNoise",
    "simigrad": "rlbatch.agents.rules.simigrad:SimiGrad",
    "thirds": "rlbatch.agents.rules.thirds:Thirds",
}

DEFAULT, EPOCHS = "default", "epochs"

FOR_EPOCHS = "saving-ramp"
"""What `default` stands for in a run of so many epochs.

The learned policy `epochs` changes the size more often and ends with a higher loss on jobs of
ordinary size (docs/results.md).
"""

PRETRAINED = (DEFAULT, EPOCHS)
"""Policies that ship with rlbatch: one for targets, one for runs of so many epochs."""

_FILE_SUFFIXES = (".safetensors", ".zip", ".pt", ".pth", ".ckpt", ".pkl")


def resolve_policy(spec: str | os.PathLike[str]) -> Policy:
    """Return the policy that a name stands for.

    Args:
        spec: `default` or `epochs` (which ship with rlbatch), the path of a policy file, or a
            rule's name with parameters: `goodput`, `fixed:64`, `noise-scale:theta=0.6,follow=true`.
            Other packages add names with entry points in the group `rlbatch.policies`; they
            cannot replace one of rlbatch's own.

    Raises:
        UnknownNameError: No policy of that name.
        ConfigurationError: A parameter that the rule does not have, or a value it cannot take; or
            another package announces the name and does not keep its word.
        PolicyFileError: The file cannot be trusted.
    """
    if not isinstance(spec, str):
        return load_policy_file(spec)
    name, _, arguments = spec.strip().partition(":")
    if name in PRETRAINED:
        if arguments:
            raise ConfigurationError(f"The {name} policy takes no parameters; got {arguments!r}.")
        return load_policy_file(pretrained_file(name))
    if name in BUILT_IN:
        factory = _load(BUILT_IN[name])
        return factory(**parse_parameters(name, factory, arguments))
    plugins = find_plugins()
    if name in plugins:
        return make_plugin(name, plugins[name], arguments)
    if _looks_like_a_file(spec):
        return load_policy_file(spec)
    raise UnknownNameError("policy", name, policy_names())


def policy_for(name: str, objective: str) -> str:
    """Return the policy that a name stands for under an objective.

    Args:
        name: As `resolve_policy` takes it.
        objective: `target`, `budget` or `epochs`.
    """
    return FOR_EPOCHS if name == DEFAULT and objective == "epochs" else name


def policy_names() -> tuple[str, ...]:
    """Return every name that `resolve_policy` knows, sorted."""
    return tuple(sorted({*PRETRAINED, *BUILT_IN, *find_plugins()}))


def policy_factory(name: str) -> Callable[..., Policy]:
    """Return the class or function behind a rule's name, for its parameters and its docstring.

    Raises:
        UnknownNameError: No rule of that name (`default` and `epochs` are none).
        ConfigurationError: Another package announces the name, and it cannot be loaded.
    """
    if name in BUILT_IN:
        return _load(BUILT_IN[name])
    plugins = find_plugins()
    if name not in plugins:
        raise UnknownNameError("policy", name, {*BUILT_IN, *plugins})
    return load_plugin(name, plugins[name])


def pretrained_file(name: str) -> Path:
    """Return the file of a policy that ships with rlbatch.

    Raises:
        PolicyFileError: It is not there.
    """
    path = Path(str(files("rlbatch"))) / "agents" / "pretrained" / f"{name}.safetensors"
    if not path.exists():
        raise PolicyFileError(
            f"The {name} policy is missing from this installation ({path}). Install rlbatch again, "
            "or name a policy file or a rule."
        )
    return path


def _load(target: str) -> Callable[..., Policy]:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _looks_like_a_file(spec: str) -> bool:
    return spec.endswith(_FILE_SUFFIXES) or "/" in spec or os.sep in spec or Path(spec).is_file()
