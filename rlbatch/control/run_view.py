"""What can be read of a user's run, before it has begun and while it goes on."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from rlbatch.control.plain_run import PlainRun
from rlbatch.control.ranks import Ranks
from rlbatch.data.delivery import Delivered
from rlbatch.errors import ConfigurationError


class RunView:
    """Shows a run's progress; before it has begun, that of a run that has made no step.

    Attributes:
        base_batch_size: The user's batch size.
        ousted: Another controller has begun to train the model.
    """

    base_batch_size: int
    ousted = False
    _parts: PlainRun | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that train together; this one alone before there is a loader."""
        return Ranks() if self._parts is None else self._parts.adapter.ranks

    @property
    def delivered(self) -> Delivered | None:
        """The micro-batch in the hands of the loop, as it was planned; None between two."""
        return None if self._parts is None else self._parts.accumulator.delivered

    @property
    def batch_complete(self) -> bool:
        """Whether the gradient of the whole batch is there, so that `step` will step."""
        return self._parts is not None and self._parts.accumulator.batch_complete

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self.base_batch_size if self._parts is None else self._parts.adapter.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 0 if self._parts is None else self._parts.adapter.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far, over all ranks."""
        return 0 if self._parts is None else self._parts.adapter.samples_seen

    @property
    def plain_steps(self) -> int:
        """Steps that the plain loop would have made with as many samples: what schedules go by."""
        parts = self._parts
        if parts is None:
            return 0
        if (watch := parts.accumulator.schedules) is not None:
            watch.steps_asked = True
        return parts.plain_steps.total

    @property
    def steps_due(self) -> int:
        """As `plain_steps`, asked for by a schedule that the controller steps."""
        return 0 if self._parts is None else self._parts.plain_steps.total

    @property
    def steps_begun(self) -> int | None:
        """As `steps_due`, with those that the step under way completes; None between two."""
        parts = self._parts
        delivered = None if parts is None else parts.accumulator.delivered
        if parts is None or delivered is None:
            return None
        return parts.plain_steps.behind(delivered.step_end)

    @property
    def components(self) -> dict[str, Any]:
        """What the controller is doing now, by part."""
        return self._run.adapter.components

    @cached_property
    def _run(self) -> PlainRun:
        if self._parts is None:
            raise ConfigurationError(
                "The controller has no loader yet. Call controller.loader(DataLoader(...)) first."
            )
        return self._parts
