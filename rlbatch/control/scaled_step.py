"""Whether a GradScaler has left an optimizer step out, for a gradient that was not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlbatch.data.sample_schedule import never


def overflow(scaler: Any, optimizer: Any, *, stepped: bool) -> Callable[[], bool]:
    """Return what tells whether a step was left out, behind `scaler.step` and before `update`.

    Fused optimizers look themselves, on the device: there it is waited for, if it is asked.

    Args:
        scaler: A `torch.amp.GradScaler`.
        optimizer: Steps.
        stepped: Its step was called.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return never if stepped else always
    flags = list(scaler._found_inf_per_device(optimizer).values())
    return lambda: any(bool(flag.item()) for flag in flags)


def always() -> bool:
    """A scaler has left the step out."""
    return True
