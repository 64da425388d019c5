"""Schedules of a Lightning run that go by optimizer steps, led by samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlbatch.control.rate_watch import RateWatch
from rlbatch.integrations._shared import SampleScheduler

_REMEDY = (
    'Return it from configure_optimizers as a schedule with "interval": "step", which goes by '
    "samples."
)


class StepSchedules:
    """Takes the place of a Trainer's schedules with `interval="step"`, until `give_back`."""

    def __init__(self, trainer: Any, due: Callable[[int], int], changes: bool) -> None:
        """Take the schedules over.

        Args:
            trainer: The Trainer.
            changes: The batch size may change.
            due: From a schedule's frequency to the steps that the plain run would have made of it.
        """
        self._taken: list[tuple[Any, SampleScheduler, int]] = []
        for config in trainer.lr_scheduler_configs:
            if config.interval != "step" or config.reduce_on_plateau:
                continue
            every = config.frequency
            schedule = SampleScheduler(config.scheduler, lambda every=every: due(every))
            schedule.skip()
            self._taken.append((config, schedule, every))
            config.scheduler, config.frequency = schedule, 1
        # Of several, none knows the rate.
        watches = changes and len(self._taken) < 2
        self._rates = RateWatch(trainer.optimizers[0], _REMEDY) if watches else None

    def begin_step(self, epoch: int, *, is_first: bool) -> None:
        """A step of an epoch is about to begin: warn of a rate that no schedule has set."""
        if is_first:
            self.skip()
        if self._rates is not None:
            one = self._taken[0][1] if self._taken else None
            self._rates.look(epoch, None if one is None else list(one.get_last_lr()))

    def skip(self) -> None:
        """Leave out what an epoch that was left early had to come."""
        for _, schedule, _ in self._taken:
            schedule.skip()

    def give_back(self) -> None:
        """Put the user's own back."""
        for config, schedule, every in self._taken:
            config.scheduler, config.frequency = schedule.scheduler, every
        self._taken = []
