"""A task's learning rate schedule, advanced with the samples instead of the steps."""

from __future__ import annotations

from torch.optim import Optimizer

from rlbatch.data import sample_schedule as data
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError


class SampleSchedule:
    """Steps the scheduler once for every `task.batch_size` samples, up to the planned number.

    The schedule is then the same function of the data seen, whatever the batch size.
    """

    def __init__(self, task: Task, optimizer: Optimizer, planned_steps: int | None) -> None:
        """Make the task's scheduler; without one, `advance` does nothing.

        Raises:
            ConfigurationError: There is a schedule and its length is not known.
        """
        if task.scheduler is not None and planned_steps is None:
            raise ConfigurationError(
                f"Task {task.name!r} has a learning rate schedule, whose length is not known. "
                "Pass planned_steps, the steps at the task's batch size."
            )
        planned = planned_steps or 0
        self._last = planned * task.batch_size
        self._schedule = (
            None
            if task.scheduler is None
            else data.SampleSchedule(task.scheduler(optimizer, planned), task.batch_size)
        )
        self._seen = 0

    def advance(self, samples_seen: int) -> None:
        """Catch up with the samples seen so far."""
        if self._schedule is not None:
            seen = min(samples_seen, self._last)
            self._schedule.step(seen - self._seen)
            self._seen = seen
