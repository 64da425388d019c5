"""How far a run has come, in steps of the user's batch size, whatever the real steps are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleCount:
    """Counts the progress of a run in steps of the user's batch size, whatever the real steps are.

    An epoch has as many as in the plain run: the last one may be of fewer samples.

    Attributes:
        base_batch_size: The user's.
        dataset_size: Samples of an epoch.
    """

    base_batch_size: int
    dataset_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the plain run in an epoch."""
        return -(-self.dataset_size // self.base_batch_size)

    def epochs(self, total_steps: int) -> float:
        """Return the epochs of a plain run of so many steps."""
        return total_steps / self.steps_per_epoch

    def steps(self, epoch: int, position: int) -> int:
        """Return the steps of the plain run that are complete.

        Args:
            epoch: Number of the epoch.
            position: Samples of it that were trained on.
        """
        if position >= self.dataset_size:
            return (epoch + 1) * self.steps_per_epoch
        return epoch * self.steps_per_epoch + position // self.base_batch_size

    def limit(self, total_steps: int, epoch: int, position: int) -> int | None:
        """Return the samples left where a run of `total_steps` ends within this epoch, else None.

        Args:
            total_steps: Steps of the plain run.
            epoch: Number of the epoch.
            position: Samples of it that were trained on.
        """
        last, steps = divmod(total_steps, self.steps_per_epoch)
        return None if epoch != last else steps * self.base_batch_size - position


class SampleScheduler:
    """Steps a scheduler, made for steps of the user's batch size, as samples pass.

    Attributes:
        scheduler: The wrapped one.
        made: Steps of the plain run that it stands at.
    """

    def __init__(self, scheduler: Any, due: Callable[[], int]) -> None:
        """Wrap a scheduler.

        Args:
            scheduler: Anything with `step()`.
            due: Returns the steps of the plain run that are complete behind the latest step.
        """
        self.scheduler, self._due, self.made = scheduler, due, 0

    def step(self, *_: Any) -> None:
        """Advance to where the run stands: by none, one or several steps."""
        # One that raises behind its end stays there: rounding may ask for a step more.
        end = getattr(self.scheduler, "total_steps", None) or math.inf
        while self.made < self._due():
            if self.scheduler.last_epoch + 1 < end:
                self.scheduler.step()
            self.made += 1

    def skip(self) -> None:
        """Stand where the run does; what was due and not stepped is left out."""
        self.made = self._due()

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # asked for while it is copied
            raise AttributeError(name)
        return getattr(self.scheduler, name)
