"""Settings as users type them: keyword arguments for `ControllerConfig` and its parts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from rlbatch.arguments import require_kind
from rlbatch.control.config import ControllerConfig
from rlbatch.control.guard import GuardConfig
from rlbatch.control.limits import Limits
from rlbatch.errors import ConfigurationError
from rlbatch.signals.cadence import Cadence
from rlbatch.signals.record import Array, Coupling
from rlbatch.tracking import Tracker


class Settings(TypedDict, total=False):
    """Keyword arguments of a controller; `ControllerConfig` and its parts say what they mean."""

    min_batch_size: int | None
    max_batch_size: int | None
    micro_batch_size: int | Literal["auto"] | None
    divisible: bool
    memory_limit: int | None
    first_chunk_steps: int
    min_chunk_steps: int
    chunk_growth: float
    max_chunk_steps: int
    limits: Limits
    cadence: Cadence
    guard: GuardConfig | None
    lr_coupling: Coupling | str
    target_loss: float | None
    budget: float | None
    epochs: float | None
    cost: Literal["seconds", "samples"]
    step_seconds: Callable[[float | Array], Array] | None
    max_log2_change: float | None
    cooldown: int
    fallback: str | None
    shadow: bool
    noise_rate: float | None
    off_when: Callable[[], bool] | None
    on_error: Literal["off", "raise"]
    log_dir: str | PathLike[str] | None
    trackers: Sequence[Tracker]


_LIMITS = (
    *("min_batch_size", "max_batch_size", "micro_batch_size"),
    *("divisible", "memory_limit"),
)
_CADENCE = {
    "first_chunk_steps": "first",
    "min_chunk_steps": "minimum",
    "chunk_growth": "growth",
    "max_chunk_steps": "maximum",
}


def make_config(config: ControllerConfig | None, settings: Mapping[str, Any]) -> ControllerConfig:
    """Return the configuration that a user gave, whole or setting by setting.

    Args:
        config: The whole; None for settings.
        settings: Keyword arguments, see `Settings`.

    Raises:
        ConfigurationError: Both were given, one is unknown, or one is impossible.
    """
    if config is not None and settings:
        raise ConfigurationError(
            f"Give either config or single settings, got config and {', '.join(settings)}."
        )
    if config is not None:
        return require_kind(
            "config", config, ControllerConfig, "Or give its fields as arguments of their own."
        )
    known = Settings.__annotations__
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" Known: {', '.join(sorted(known))}."
            raise ConfigurationError(f"A controller has no setting {name!r}.{hint}")
    values = dict(settings)
    _gather(values, "limits", Limits, dict(zip(_LIMITS, _LIMITS, strict=True)))
    _gather(values, "cadence", Cadence, _CADENCE)
    return ControllerConfig(**values)


def _gather(
    values: dict[str, Any], part: str, make: Callable[..., object], names: Mapping[str, str]
) -> None:
    """Make a part of the configuration from its single settings, in place."""
    single = {names[name]: values.pop(name) for name in names if name in values}
    if not single:
        return
    if part in values:
        raise ConfigurationError(f"Give either {part} or its single settings, got both.")
    values[part] = make(**single)
