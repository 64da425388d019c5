"""The tree of errors that rlbatch raises on purpose.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlbatchError(Exception):
    """Base class: `except RlbatchError` catches whatever rlbatch raises on purpose."""


class ConfigurationError(RlbatchError, ValueError):
    """A setting is outside of what is possible."""


class UnknownNameError(ConfigurationError):
    """A task, policy, profile or recipe of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Build the message with the closest known names."""
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
        super().__init__(
            f"Unknown {kind} {name!r}. {hint} Known: {', '.join(names)}.".replace("  ", " ")
        )
        self.kind, self.name, self.close, self._known = kind, name, close, names

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        """Let it pass between processes: a pool whose worker's error cannot be read hangs."""
        return UnknownNameError, (self.kind, self.name, self._known)


class MissingExtraError(RlbatchError, ImportError):
    """An optional package is needed that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package and the extra that brings it."""
        super().__init__(
            f"{package} is needed here and is not installed. Run: pip install 'rlbatch[{extra}]'"
        )
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Let it pass between processes."""
        return MissingExtraError, (self.package, self.extra)


class PolicyFileError(RlbatchError):
    """A policy file cannot be trusted: truncated, of another schema, wrong shapes, non-finite."""


class EpisodeLogError(RlbatchError):
    """An episode log cannot be read or written."""


class DeliveryError(RlbatchError):
    """The data pipeline did not deliver the batch that was decided."""


class MemoryUsedUpError(RlbatchError, MemoryError):
    """A pass ran out of memory where the run cannot go on."""


class ClusterError(RlbatchError):
    """A cluster lost a run more often than is done again, or was lost itself."""
