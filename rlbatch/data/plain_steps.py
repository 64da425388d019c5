"""What the plain loop would have done by now: its steps, counted by samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class SampleCount:
    """Counts the progress of a run in steps of the user's batch size, whatever the real steps are.

    An epoch has as many as in the plain run: the last one may be of fewer samples.

    Attributes:
        base_batch_size: The user's.
        dataset_size: Samples of an epoch.
        drop_last: The plain run leaves out what does not fill its last step.
    """

    base_batch_size: int
    dataset_size: int
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the plain run in an epoch."""
        return self.steps_in(self.dataset_size)

    def steps_in(self, samples: int) -> int:
        """Return the steps that the plain run makes of an epoch of so many samples."""
        whole, rest = divmod(samples, self.base_batch_size)
        return whole + (rest > 0 and not self.drop_last)

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


class PlainSteps:
    """Counts the optimizer steps that the plain loop would have made by now.

    Unlike a `SampleCount` it counts what was trained on: an epoch that was left early, or a batch
    that was left out, has fewer.

    Attributes:
        count: Turns samples of an epoch into steps.
        total: Steps so far.
    """

    def __init__(self, count: SampleCount) -> None:
        """Start in front of the first epoch."""
        self.count, self.total = count, 0
        self._told = 0  # by `advance`
        self._before = self._left_out = self._position = 0  # steps of earlier epochs; of this one

    def begin_epoch(self, samples: int | None = None, *, continues: bool = False) -> None:
        """An epoch begins, anew or behind the place where a resumed run stopped.

        Args:
            samples: Of the epoch, if they may be others than in the last one.
            continues: It is the one that was interrupted.
        """
        if samples is not None and samples != self.count.dataset_size:
            self.count = replace(self.count, dataset_size=samples)
        if continues:
            return
        self._before, self._left_out, self._position = self.total, 0, 0

    def leave_out(self, samples: int, position: int) -> None:
        """A batch of this epoch was not trained on; `position` is that behind it."""
        self._left_out += samples
        self._position = position

    def advance(self, position: int) -> int:
        """Take the epoch's position behind a step and return the plain steps complete since."""
        self._position, self.total = position, self.behind(position)
        made, self._told = self.total - self._told, self.total
        return made

    def behind(self, position: int) -> int:
        """Return the steps so far behind a place of the epoch."""
        count = self.count
        if position >= count.dataset_size:
            return self._at_end(position)
        steps = self._before + (position - self._left_out) // count.base_batch_size
        return max(self.total, steps)

    def end_epoch(self) -> None:
        """Nothing more comes of the epoch: its rest counts as in the plain loop."""
        self.total = self._at_end(self._position)

    def _at_end(self, position: int) -> int:
        whole = self.count.dataset_size if self.count.drop_last else position
        return max(self.total, self._before + self.count.steps_in(whole - self._left_out))

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {
            "total": self.total,
            "told": self._told,
            "before": self._before,
            "left_out": self._left_out,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from these counts."""
        self.total, self._told, self._before = state["total"], state["told"], state["before"]
        self._left_out, self._position = state["left_out"], state["position"]


class StepSamples(int):
    """The samples of an optimizer step, which also tell the steps of the plain loop.

    Attributes:
        base_batch_size: Samples of a step of the plain loop.
        plain_steps: So many of these are complete with this step that were not before.
    """

    base_batch_size: int
    plain_steps: int

    @classmethod
    @lru_cache(maxsize=64)  # sizes repeat from step to step
    def of(cls, samples: int, base_batch_size: int, plain_steps: int) -> StepSamples:
        """Return a number of samples with this knowledge."""
        number = cls(samples)
        number.base_batch_size, number.plain_steps = base_batch_size, plain_steps
        return number


# A loop may keep what `step` returned in a checkpoint, which torch reads without running code.
torch.serialization.add_safe_globals([StepSamples])  # pyright: ignore[reportUnknownMemberType]
