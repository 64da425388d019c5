"""Moving averages that callbacks of a Lightning Trainer keep, so that a roll-back restores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

_Hook = tuple[Callable[[], dict[str, Tensor]], Callable[[dict[str, Tensor]], None]]


def average_hooks(trainer: Any) -> Iterator[_Hook]:
    """Yield how to save and restore the averages of a Trainer's callbacks."""
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            yield _hook(callback)


def _hook(callback: Any) -> _Hook:
    def save() -> dict[str, Tensor]:
        return dict(callback._average_model.state_dict())

    def restore(state: dict[str, Tensor]) -> None:
        callback._average_model.load_state_dict(state)

    return save, restore
