"""How far a control loop is: the part of its state that is plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import RunContext

_PUBLIC = ("batch_size", "enabled", "steps", "samples_seen")  # saved under these names


@dataclass
class LoopProgress:
    """What a control loop counts, and what it remembers from one decision to the next.

    Attributes:
        batch_size: Decided last: in force once it is delivered.
        before: Batch size in force before that decision.
        enabled: False once the loop only watches the user's own batch size go by.
        touched: The batch size was changed at least once.
        steps: Optimizer steps so far.
        samples_seen: Samples so far.
        chunk_done: Steps of the chunk under way so far.
        chunk_steps: Steps that it is to have; 0 between two chunks.
        chunk_cost: The run's cost at its start.
        chunk_began: The run's optimizer steps at its start.
        val_loss: Reported since the latest decision; NaN for none.
        asked: Steps so far whose gradient noise was to be measured.
        noise_seen: Some of them showed noise, or the log says that none did.
        learning_rate: Before any schedule, when the run began; a resumed one begins within it.
        momentum: When the run began.
    """

    batch_size: int
    before: int
    enabled: bool = True
    touched: bool = False
    steps: int = 0
    samples_seen: int = 0
    chunk_done: int = 0
    chunk_steps: int = 0
    chunk_cost: float = 0.0
    chunk_began: int = 0
    val_loss: float = math.nan
    asked: int = 0
    noise_seen: bool = False
    learning_rate: float = 0.0
    momentum: float = 0.0

    @classmethod
    def at_start(cls, context: RunContext) -> LoopProgress:
        """Return that of a run which is about to begin with these constants."""
        size, rate = round(float(context.base_batch_size)), float(context.learning_rate)
        return cls(size, size, learning_rate=rate, momentum=float(context.momentum))

    def constants(self, context: RunContext) -> RunContext:
        """Return the constants of a run as they were when it began."""
        return replace(context, learning_rate=self.learning_rate, momentum=self.momentum)

    def begin_chunk(self, steps: int) -> None:
        """Begin a chunk of so many steps."""
        self.chunk_steps, self.chunk_done, self.chunk_began = steps, 0, self.steps

    def change(self, in_force: int, size: int, base: int) -> None:
        """Take a decision.

        Args:
            in_force: The batch size until now.
            size: The one from now on.
            base: The user's.
        """
        self.before, self.batch_size = in_force, size
        self.touched = self.touched or size != base

    def state_dict(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {_saved_as(field.name): getattr(self, field.name) for field in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: No run can be there.
        """
        for field in fields(self):
            setattr(self, field.name, state[_saved_as(field.name)])
        smallest = min(self.batch_size, self.before)
        if smallest < 1 or self.chunk_done > self.chunk_steps:
            raise ConfigurationError(
                f"The state tells of a batch size of {smallest} and of {self.chunk_done} of "
                f"{self.chunk_steps} steps. Resume from another checkpoint."
            )


def _saved_as(name: str) -> str:
    """Return a field's name in checkpoints, where most have an underscore in front."""
    return name if name in _PUBLIC else f"_{name}"
