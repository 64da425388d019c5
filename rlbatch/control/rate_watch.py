"""Notices, in a framework's loop, a learning rate that is set by steps of the user's own count."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_DECAY = ("weight_decay",)  # a schedule of a rate may move momentum with it


class RateWatch:
    """Compares the rates in front of each step with what the framework's schedule last set.

    Where there is no such schedule, with those in front of the epoch's first step.
    """

    def __init__(self, optimizer: Optimizer, remedy: str) -> None:
        """Watch an optimizer's rates.

        Args:
            optimizer: That of the run.
            remedy: How to give the framework a schedule, for the message.
        """
        self._optimizer, self._remedy = optimizer, remedy
        self._epoch: int | None = None
        self._first: list[Any] = []
        self._decays: list[Any] = []
        self._done = False

    def look(self, epoch: int, scheduled: Sequence[Any] | None = None) -> None:
        """A step is about to begin; warn, once, where a rate is another than expected.

        Args:
            epoch: The step's.
            scheduled: What a schedule by steps set last; None where there is none.
        """
        if self._done:
            return
        rates, decays = known_rates(self._optimizer), known_settings(self._optimizer, _DECAY)
        if epoch != self._epoch:
            self._epoch, self._first, self._decays = epoch, rates, decays
        expected = self._first if scheduled is None else [_known(rate) for rate in scheduled]
        moved = "learning rate" if differ(rates, expected) else None
        if moved is None and differ(decays, self._decays):
            moved = "weight decay"
        if moved is None:
            return
        self._done = True
        warnings.warn(
            f"rlbatch: something else than the schedule sets the {moved} between optimizer "
            f"steps. What counts these would end late or early where the batch size changes. "
            f"{self._remedy}",
            RuntimeWarning,
            stacklevel=4,
        )


def known_rates(optimizer: Optimizer) -> list[Any]:
    """Return the learning rate of each parameter group; None for one that lies on a device.

    A rate in a tensor is changed in place by the coupling, and put back: its value is kept.
    """
    return [_known(group["lr"]) for group in optimizer.param_groups]


def known_settings(optimizer: Optimizer, names: Sequence[str]) -> list[Any]:
    """Return other settings of each parameter group, as far as they are on the host."""
    groups = optimizer.param_groups
    return [tuple(_known(group.get(name)) for name in names) for group in groups]


def differ(now: Sequence[Any], was: Sequence[Any]) -> bool:
    """Whether a value is another than it was; groups that have come since do not count."""
    return any(one != other for one, other in zip(now, was, strict=False))


def _known(rate: Any) -> Any:
    """Return a rate that is on the host; another one would be waited for."""
    if isinstance(rate, Tensor):
        return float(rate) if rate.is_cpu else None
    return rate
