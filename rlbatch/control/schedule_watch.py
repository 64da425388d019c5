"""Notices, at the first steps, a learning-rate schedule that counts optimizer steps."""

from __future__ import annotations

import gc
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlbatch.data.delivery import Delivered
from rlbatch.data.sample_schedule import counts_samples, follows_a_metric, horizon_of


class ScheduleWatch:
    """Looks between two steps of an epoch whether a schedule has moved, once.

    Schedules by epochs move between epochs, and those that the controller steps are known.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Watch the schedules of an optimizer."""
        self._optimizer = optimizer
        self._schedulers: list[Any] | None = None  # of torch, looked for once
        self._before: list[Any] | None = None
        self._epoch = -1
        self._done = False

    def after_step(self) -> None:
        """The optimizer has stepped: note where its schedules stand."""
        if not self._done:
            self._before = self._places()

    def before_step(self, delivered: Delivered) -> None:
        """The optimizer is about to step; warn where a schedule has moved since its last step."""
        if self._done:
            return
        before, epoch = self._before, self._epoch
        self._epoch = delivered.epoch
        if before is None or epoch != delivered.epoch:
            return
        self._done = True
        moved, names = self._places() != before, self._names()
        self._schedulers, self._before = [], None
        if not moved or counts_samples(self._optimizer):
            return
        warnings.warn(
            f"rlbatch: {names} is stepped at every batch, and a run whose batch size "
            "changes has fewer or more of them: the schedule would end late or early. Before the "
            "loop call scheduler = controller.schedule(scheduler), which goes by samples, and "
            "leave the rest as it is.",
            RuntimeWarning,
            stacklevel=5,
        )

    def _places(self) -> list[Any]:
        places: list[Any] = []
        for group in self._optimizer.param_groups:
            rate = group["lr"]
            places.append(rate._version if isinstance(rate, Tensor) else rate)
        return [*places, *(scheduler.last_epoch for scheduler in self._found())]

    def _found(self) -> list[Any]:
        if self._schedulers is None:
            # Every scheduler of torch leaves this mark; none has to be looked for without it.
            scheduled = any("initial_lr" in group for group in self._optimizer.param_groups)
            self._schedulers = schedulers_of(self._optimizer) if scheduled else []
        return self._schedulers

    def _names(self) -> str:
        for scheduler in self._found():
            horizon = horizon_of(scheduler)
            name = type(scheduler).__name__
            return f"the schedule {name}" + (f" ({horizon})" if horizon else "")
        return "the learning rate"


def schedulers_of(optimizer: Optimizer) -> list[Any]:
    """Return the schedulers of torch, or like torch's, that count steps of an optimizer.

    An optimizer does not know them: those are looked for that know it.
    """
    found: dict[int, Any] = {}
    for holder in gc.get_referrers(optimizer):
        owners = [holder]
        if isinstance(holder, dict):  # an instance's own, in some versions of Python
            known: dict[Any, Any] = holder
            owners = gc.get_referrers(known) if "last_epoch" in known else []
        for owner in owners:
            if hasattr(type(owner), "get_last_lr") and not follows_a_metric(owner):
                found[id(owner)] = owner
    return [s for s in found.values() if getattr(s, "optimizer", None) is optimizer]
