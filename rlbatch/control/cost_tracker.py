"""What a user's run has cost: by the wall clock, by given step times, or in samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rlbatch.control.config import ControllerConfig
from rlbatch.signals import step_time
from rlbatch.signals.record import Array
from rlbatch.signals.step_time import FLOOR_SECONDS, samples_of


class CostTracker:
    """Adds up the cost of a run, and learns what a step costs at each batch size.

    The wall clock runs from the moment that a loader is asked for its first batch until it is
    exhausted, `pause`s excepted. Steps are not timed one by one, since a device works behind the
    host's back: a chunk ends with a transfer from it, and is timed as a whole.

    Attributes:
        total: Cost so far.
        step_cost: Of one step by its samples; None by the wall clock, which counts no steps.
    """

    def __init__(self, config: ControllerConfig, now: Callable[[], float] | None = None) -> None:
        """Start at zero, paused.

        Args:
            config: Says what counts.
            now: Clock in seconds; None takes the system's.
        """
        self._now = time.perf_counter if now is None else now
        self.step_cost = samples_of if config.cost == "samples" else config.step_seconds
        self._known: step_time.StepTimeState = {}
        self._since: float | None = None
        self._seconds = 0.0  # on the wall, not yet in the total
        self._chunk_seconds = 0.0
        self.total = 0.0

    @property
    def so_far(self) -> float:
        """The total, with what the wall clock says since it was last added to."""
        if self.step_cost is not None:
            return self.total
        running = 0.0 if self._since is None else self._now() - self._since
        return self.total + self._seconds + running

    def resume(self) -> None:
        """Let the wall clock run."""
        if self._since is None:
            self._since = self._now()

    def pause(self) -> None:
        """Stop the wall clock."""
        self._seconds += self._lap()
        self._since = None

    def step(self, samples: int) -> None:
        """Count one optimizer step, where each has a known cost."""
        if self.step_cost is not None:
            self.total += float(self.step_cost(float(samples)))

    def begin_chunk(self) -> None:
        """Start the time of a chunk."""
        self._settle()
        self._chunk_seconds = 0.0

    def end_chunk(self, batch_size: int, steps: int) -> None:
        """Take the time since `begin_chunk` as that of some steps at a batch size."""
        self._settle()
        if steps:
            seconds = self._chunk_seconds / steps
            self._known = step_time.observe(self._known, batch_size, seconds)

    def curve(self) -> tuple[Array, float]:
        """Return `Signals.step_cost_curve` and `Signals.step_cost_known`."""
        if self.step_cost is not None:
            return step_time.known_curve(self.step_cost)
        line = step_time.fit(self._known)
        return line.step_cost_curve(), line.known

    def state_dict(self) -> dict[str, Any]:
        """Return the total and what is known of step times, as JSON-compatible values."""
        self._settle()
        known = [[size, list(times)] for size, times in self._known.items()]
        return {"total": self.total, "known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from these."""
        self.total = state["total"]
        self._known = {size: tuple(times) for size, times in state["known"]}
        self._seconds = self._chunk_seconds = 0.0

    def _lap(self) -> float:
        if self._since is None:
            return 0.0
        now = self._now()
        seconds, self._since = now - self._since, now
        return seconds

    def _settle(self) -> None:
        seconds, self._seconds = self._seconds + self._lap(), 0.0
        self._chunk_seconds += max(seconds, FLOOR_SECONDS)
        if self.step_cost is None:
            self.total += max(seconds, FLOOR_SECONDS)
