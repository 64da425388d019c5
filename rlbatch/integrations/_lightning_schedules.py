"""Schedules of a Lightning run that go by optimizer steps, led by samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlbatch.integrations._shared import SampleScheduler


class StepSchedules:
    """Takes the place of a Trainer's schedules with `interval="step"`, until `give_back`."""

    def __init__(self, trainer: Any, due: Callable[[int], int]) -> None:
        """Take the schedules over.

        Args:
            trainer: The Trainer.
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

    def latest_rates(self) -> list[Any] | None:
        """Return what the schedule set last; None where there is none that would tell."""
        if len(self._taken) != 1:
            return None
        return list(self._taken[0][1].get_last_lr())

    @property
    def tell(self) -> bool:
        """Whether there is one schedule by steps at most, so that others can be seen."""
        return len(self._taken) < 2

    def skip(self) -> None:
        """Leave out what an epoch that was left early had to come."""
        for _, schedule, _ in self._taken:
            schedule.skip()

    def give_back(self) -> None:
        """Put the user's own back."""
        for config, schedule, every in self._taken:
            config.scheduler, config.frequency = schedule.scheduler, every
        self._taken = []
