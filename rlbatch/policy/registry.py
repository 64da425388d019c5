"""From a name to a policy: `default`, a policy file, or a rule such as `fixed:64`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rlbatch.errors import ConfigurationError, PolicyFileError, UnknownNameError
from rlbatch.policy.base import Policy
from rlbatch.policy.file import load_policy as load_policy_file
from rlbatch.policy.parameters import parse_parameters

ENTRY_POINT_GROUP = "rlbatch.policies"

# Text, not imports: `rlbatch.policy` does not depend on `rlbatch.agents`, and nothing is loaded
# before it is named.
BUILT_IN: Mapping[str, str] = {
    "adadamp": "rlbatch.agents.rules.adadamp:AdaDamp",
    "cabs": "rlbatch.agents.rules.cabs:Cabs",
    "fixed": "rlbatch.agents.rules.fixed:Fixed",
    "geometric": "rlbatch.agents.rules.geometric:Geometric",
    "goodput": "rlbatch.agents.rules.goodput:Goodput",
    "noise-scale": "rlbatch.agents.rules.noise_scale:NoiseScale",
    "norm-test": "rlbatch.agents.rules.norm_test:NormTest",
    "padadamp": "rlbatch.agents.rules.adadamp:PadaDamp",
    "plateau": "rlbatch.agents.rules.plateau:Plateau",
    "radadamp": "rlbatch.agents.rules.adadamp:RadaDamp",
    "random": "rlbatch.agents.rules.random_walk:RandomWalk",
    "simigrad": "rlbatch.agents.rules.simigrad:SimiGrad",
}

DEFAULT = "default"
_DEFAULT_FILE = "agents/pretrained/default.safetensors"
_FILE_SUFFIXES = (".safetensors", ".zip", ".pt", ".pth", ".ckpt", ".pkl")


def resolve_policy(spec: str | os.PathLike[str]) -> Policy:
    """Return the policy that a name stands for.

    Args:
        spec: `default` (the policy that ships with rlbatch), the path of a policy file, or a
            rule's name with parameters: `goodput`, `fixed:64`, `noise-scale:theta=0.6,follow=true`.

    Raises:
        UnknownNameError: No policy of that name.
        ConfigurationError: A parameter that the rule does not have, or a value it cannot take.
        PolicyFileError: The file cannot be trusted.
    """
    if not isinstance(spec, str):
        return load_policy_file(spec)
    name, _, arguments = spec.strip().partition(":")
    if name == DEFAULT:
        if arguments:
            raise ConfigurationError(f"The default policy takes no parameters; got {arguments!r}.")
        return _load_default()
    factories = _factories()
    if name in factories:
        factory = _load(name, factories[name])
        return factory(**parse_parameters(name, factory, arguments))
    if _looks_like_a_file(spec):
        return load_policy_file(spec)
    raise UnknownNameError("policy", name, policy_names())


def policy_names() -> tuple[str, ...]:
    """Return every name that `resolve_policy` knows, sorted."""
    return tuple(sorted({DEFAULT, *_factories()}))


def _load_default() -> Policy:
    with as_file(files("rlbatch") / _DEFAULT_FILE) as path:
        if not path.exists():
            raise PolicyFileError(
                f"The default policy is missing from this installation ({path}). Install rlbatch "
                "again, or name a policy file or a rule."
            )
        return load_policy_file(path)


def _factories() -> dict[str, str | EntryPoint]:
    """Return the rules by name. A plug-in cannot silently replace a built-in one."""
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**plugins, **BUILT_IN}


def _load(name: str, target: str | EntryPoint) -> Callable[..., Policy]:
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    try:
        factory: Any = target.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"Policy {name!r} is announced by an installed package as {target.value!r}, which "
            f"cannot be loaded: {error}. Repair or remove that package."
        ) from error
    return factory


def _looks_like_a_file(spec: str) -> bool:
    return spec.endswith(_FILE_SUFFIXES) or "/" in spec or os.sep in spec or Path(spec).is_file()
