"""A task's learning rate schedule, advanced with the samples instead of the steps."""

from __future__ import annotations

from torch.optim import Optimizer

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
        self._planned = planned_steps or 0
        self._batch_size = task.batch_size
        self._scheduler = (
            None if task.scheduler is None else task.scheduler(optimizer, self._planned)
        )
        self._done = 0

    def advance(self, samples_seen: int) -> None:
        """Catch up with the samples seen so far."""
        if self._scheduler is None:
            return
        due = min(samples_seen // self._batch_size, self._planned)
        while self._done < due:
            self._scheduler.step()
            self._done += 1
