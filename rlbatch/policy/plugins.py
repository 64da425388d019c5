"""Policies of other installed packages, announced in the entry-point group `rlbatch.policies`.

Whatever is wrong with such a package becomes one error that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rlbatch.errors import ConfigurationError, RlbatchError
from rlbatch.policy.base import Policy
from rlbatch.policy.parameters import parse_parameters

ENTRY_POINT_GROUP = "rlbatch.policies"


def find_plugins() -> dict[str, tuple[EntryPoint, ...]]:
    """Return what is announced under each name; nothing of it is loaded.

    Raises:
        ConfigurationError: An installed package's list of entry points cannot be read.
    """
    try:
        found = tuple(entry_points(group=ENTRY_POINT_GROUP))
    except Exception as error:  # of a damaged installation, anything
        raise ConfigurationError(
            "The entry points of the installed packages cannot be read, and so their policies not "
            f"found ({type(error).__name__}: {error}). Look for a damaged package with: pip check"
        ) from error
    return {
        name: tuple(point for point in found if point.name == name)
        for name in sorted({point.name for point in found})
    }


def provider(points: tuple[EntryPoint, ...]) -> str:
    """Return the packages behind a name, for messages."""
    names = {
        f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
        for point in points
    }
    return " and ".join(sorted(names))


def load_plugin(name: str, points: tuple[EntryPoint, ...]) -> Callable[..., Any]:
    """Return the class or function that a name stands for.

    Raises:
        ConfigurationError: It cannot be loaded or called, or packages announce different ones.
    """
    targets = sorted({point.value for point in points})
    if len(targets) > 1:
        raise ConfigurationError(
            f"Policy {name!r} is announced more than once: {' and '.join(targets)}, by "
            f"{provider(points)}. Remove all but one."
        )
    try:
        factory: Any = points[0].load()
    except Exception as error:  # a module of somebody else's is run here
        raise ConfigurationError(
            f"{_which(name, points)} cannot be loaded ({type(error).__name__}: {error}). "
            "Repair or remove that package."
        ) from error
    if not callable(factory):
        raise ConfigurationError(
            f"{_which(name, points)} must be a class or a function that returns a policy, got "
            f"{factory!r}. Repair or remove that package."
        )
    return factory


def make_plugin(name: str, points: tuple[EntryPoint, ...], arguments: str) -> Policy:
    """Return the policy that a name with parameters stands for.

    Raises:
        ConfigurationError: It cannot be made, or is no policy.
    """
    factory = load_plugin(name, points)
    try:
        policy: Any = factory(**parse_parameters(name, factory, arguments))
        conforms = isinstance(policy, Policy) and not isinstance(policy, type)
    except RlbatchError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{_which(name, points)} failed with {type(error).__name__}: {error}. Other parameters "
            "may help; else repair or remove that package."
        ) from error
    if not conforms:
        raise ConfigurationError(
            f"{_which(name, points)} must give an object with needs_gradient_noise, initial_state "
            f"and decide (rlbatch.Policy), got {policy!r}. Repair or remove that package."
        )
    return policy


def _which(name: str, points: tuple[EntryPoint, ...]) -> str:
    return f"Policy {name!r} of {provider(points)} ({points[0].value})"
