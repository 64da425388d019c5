"""A learning rate schedule that goes by the samples of a controller's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlbatch.data.sample_schedule import SampleScheduler, never, require_steps
from rlbatch.errors import ConfigurationError


class RunSchedule(SampleScheduler):
    """A scheduler that goes by the samples of a controller's run; the loop steps it as before.

    A loop may leave `step()` out, and what came due then is made up with the next call. But where a
    GradScaler has left an optimizer step out, and the schedule's with it, it stays left out, and a
    schedule that was not stepped in a whole epoch begins later: as in the plain loop.

    Where a loop steps it before the optimizer, of which torch itself warns, each step has the next
    one's rate, also as in the plain loop. By its first call it is known which of the two it is.

    Its state holds its own place and the wrapped scheduler's, so that one call saves both.

    Attributes:
        passes: Whether `step()` does nothing behind the latest optimizer step.
    """

    def __init__(
        self,
        scheduler: Any,
        due: Callable[[], int],
        begun: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Wrap a scheduler that stands where the run does.

        Args:
            scheduler: Anything with `step()`.
            due: Returns the steps of the plain run that are complete behind the latest step.
            begun: Returns those complete behind the step under way; None between two steps.

        Raises:
            ConfigurationError: It needs a metric at each step.
        """
        require_steps(scheduler)
        super().__init__(scheduler, due)
        self.passes: Callable[[], bool] = never
        self._left_out: Callable[[], bool] = never  # the latest optimizer step
        self._begun = begun
        self._leads: bool | None = None  # is stepped before the optimizer; None: not yet known
        self._epoch: int | None = None
        self._made_at_epoch = 0  # before its first step
        self.skip()
        self._note()

    def end_step(self, epoch: int, left_out: Callable[[], bool]) -> None:
        """An optimizer step ends, and is yet to be counted.

        Args:
            epoch: Its number.
            left_out: Returns whether a scaler has left it out. Asked later, if at all.
        """
        if self._leads is None:
            self._leads = False
        self.made, self._left_out = self.place, left_out
        if epoch != self._epoch:
            if self._epoch is not None and self.made == self._made_at_epoch:
                self.skip()
            self._epoch, self._made_at_epoch = epoch, self.made
        self._note()

    @property
    def place(self) -> int:
        """Steps of the plain run that it stands at, with one that loop and scaler left out."""
        own, untouched = self._due() - self._due_before, self.made == self._made_before
        return self.made + own if own and untouched and self._left_out() else self.made

    def _note(self) -> None:
        """Remember what is due and made before the steps that the optimizer step completes."""
        self._made_before, self._due_before = self.made, max(self.made, self._due())

    def leave_out(self) -> None:
        """The step under way is left out: one that was stepped before it counts on from there."""
        self.made = min(self.made, self._due())

    def step(self, *place: Any) -> None:
        """Advance to where the run stands: by none, one or several steps.

        Raises:
            ConfigurationError: A place is named.
        """
        if place:
            name = type(self.scheduler).__name__
            raise ConfigurationError(
                f"Expected {name}.step() without an argument, by which it counts steps of your "
                f"batch size, got step({place[0]}). Give {name} its lengths in steps; or leave it "
                "out of controller.schedule and step it by samples: scheduler.step(epoch + "
                "loader.sampler.position / len(dataset))."
            )
        due, begun = self._due(), self._begun()
        if self._leads is None and begun is not None:
            self._leads = self.made >= due
        if self._leads and begun is not None:
            due = begun
        if not self.passes():
            self.catch_up(due)
        elif self._leads:
            self.made = due

    def stand_at(self, made: int) -> None:
        """Continue from a place of a saved state."""
        self.made, self._left_out, self._leads = made, never, None
        self._note()

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped scheduler's state and the steps of the plain run that it stands at."""
        return {"scheduler": self.scheduler.state_dict(), "made": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, or from a state of the wrapped scheduler itself."""
        inner = state.get("scheduler")
        self.scheduler.load_state_dict(state if inner is None else inner)
        if inner is not None:
            self.stand_at(state["made"])
