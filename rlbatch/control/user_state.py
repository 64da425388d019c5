"""What a controller does for objects of the user's own: schedules, and copies of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlbatch.arguments import require_whole
from rlbatch.control.training_parts import WeightCopy
from rlbatch.data.run_schedule import RunSchedule
from rlbatch.errors import ConfigurationError

if TYPE_CHECKING:
    from rlbatch.control.run_view import RunView

_Hook = tuple[Callable[[], Any], Callable[[Any], Any]]


class UserState:
    """Holds what was registered, before or after there is a run or a loaded state."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._schedules: list[RunSchedule] = []
        self._hooks: list[_Hook] = []
        self._snapshot: WeightCopy | None = None
        self._loaded: list[int] = []  # where schedules stood that are yet to be registered

    def attach(self, snapshot: WeightCopy) -> None:
        """Take the copy to which hooks are added."""
        self._snapshot = snapshot
        for hook in self._hooks:
            snapshot.also.add(*hook)

    def schedule(self, scheduler: Any, view: RunView, steps: object) -> RunSchedule:
        """Return a schedule that catches up with the run.

        Args:
            scheduler: Made for steps of the user's batch size.
            view: Of the run.
            steps: How many of its own it makes for each of these.
        """
        times = require_whole("steps", steps, "a whole number of the scheduler's steps")

        def begun() -> int | None:
            found = view.steps_begun
            return None if found is None else times * found

        schedule = RunSchedule(scheduler, lambda: times * view.steps_due, begun)
        if self._loaded:
            schedule.stand_at(self._loaded.pop(0))
        self._schedules.append(schedule)
        return schedule

    def on_rollback(self, save: Any, restore: Callable[[Any], Any] | None) -> None:
        """Add what a roll-back restores.

        Raises:
            ConfigurationError: There is no way to save or restore it.
        """
        hook = check_hook(save, restore)
        self._hooks.append(hook)
        if self._snapshot is not None:
            self._snapshot.also.add(*hook)

    def state_dict(self) -> list[int]:
        """Return where the schedules stand, in steps of the plain loop."""
        return [schedule.place for schedule in self._schedules]

    def end_step(self, epoch: int, left_out: Callable[[], bool]) -> None:
        """An optimizer step ends; see `RunSchedule.end_step`."""
        for schedule in self._schedules:
            schedule.end_step(epoch, left_out)

    def leave_out(self) -> None:
        """The step under way is left out."""
        for schedule in self._schedules:
            schedule.leave_out()

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Let schedules stand there, also those that are registered later."""
        for schedule, made in zip(self._schedules, state, strict=False):
            schedule.stand_at(made)
        self._loaded = list(state[len(self._schedules) :])


def check_hook(save: Any, restore: Callable[[Any], Any] | None) -> _Hook:
    """Return what saves and restores, out of the arguments of an `on_rollback`.

    Raises:
        ConfigurationError: There is no way to save or restore it.
    """
    if restore is None and hasattr(save, "state_dict") and hasattr(save, "load_state_dict"):
        save, restore = save.state_dict, save.load_state_dict
    if not callable(save) or not callable(restore):
        raise ConfigurationError(
            "Expected on_rollback(object) with state_dict() and load_state_dict(state), or "
            f"on_rollback(save, restore) with two functions, got {type(save).__name__} and "
            f"{type(restore).__name__}."
        )
    return save, restore
