"""What a controller asks of a training, whatever the framework: a few small parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlbatch.control.user_copies import UserCopies
from rlbatch.signals.assemble import OptimizerFacts
from rlbatch.signals.monitor import ChunkMeasurement


class LearningRate(OptimizerFacts, Protocol):
    """The learning rate of an optimizer, and the factor that a step multiplies it by."""

    @property
    def factor(self) -> float:
        """Factor of the coming steps."""
        ...

    @factor.setter
    def factor(self, factor: float) -> None: ...

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule sets it."""
        ...

    def scheduled_steps(self, epoch_steps: int) -> int | None:
        """Return for how many steps at the user's batch size its schedule was made.

        None where that cannot be told.
        """
        ...

    def current(self) -> float:
        """Return it as scheduled, without the factor."""
        ...


class StepMonitor(Protocol):
    """Watches the steps of a chunk, on the device; `rlbatch.signals.monitor` has torch's."""

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step and the samples of its micro-batches."""
        ...

    def after_backward(self, loss: Any) -> None:
        """Take a micro-batch's mean loss, after its backward pass."""
        ...

    def leave_unmeasured(self) -> None:
        """Measure no noise in the step under way, whose parts are weighted in another way."""
        ...

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way, and those after the first `steps` of the chunk."""
        ...

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device and start the next one."""
        ...

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the first `steps` of the chunk so far as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        ...


class WeightCopy(Protocol):
    """One copy of all that a step of training changes.

    Attributes:
        taken: Whether there is a copy.
        also: What else is copied and put back.
    """

    taken: bool
    also: UserCopies

    def begin(self) -> None:
        """The run is about to make a step: what changes from now on is part of the copy."""
        ...

    def take(self) -> None:
        """Copy the present values, over those of the last call."""
        ...

    def extend(self) -> None:
        """Copy what has begun to be trained since, before the optimizer's step."""
        ...

    def restore(self) -> None:
        """Put the copied values back."""
        ...

    def exchange(self) -> None:
        """Put the copied values back, and keep those of now in their place."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the copy as plain values and torch tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy out of a checkpoint; one of other shapes is left alone."""
        ...

    def changing(self) -> list[Any] | None:
        """Return what a checkpoint has to know of what changes besides what is trained."""
        ...

    def load_changing(self, slots: list[Any] | None) -> None:
        """Take what `changing` returned."""
        ...


class BatchLoader(Protocol):
    """Hands out batches of the size that was decided last, and knows its place in the data."""

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next one."""
        ...

    @property
    def next_step(self) -> int:
        """Number of the optimizer step at which a change of the size takes effect."""
        ...

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the optimizer steps from `next_step` on."""
        ...

    def end_step(self) -> None:
        """Take note that the optimizer has stepped with what was handed out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last optimizer step."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there with the next iteration."""
        ...


@dataclass(frozen=True)
class TrainingParts:
    """A training as a control loop sees it.

    Attributes:
        rate: Its learning rate.
        monitor: Watches its steps.
        weights: Copies them, so that a chunk can be undone.
        model: Name of the model's class, for the log.
        optimizer: Name of the optimizer's class, for the log.
    """

    rate: LearningRate
    monitor: StepMonitor
    weights: WeightCopy
    model: str
    optimizer: str
