"""Learning rate schedules that go by samples, for steps of varying size."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from rlbatch.data.plain_steps import StepSamples
from rlbatch.data.step_plan import require_positive
from rlbatch.errors import ConfigurationError

# What says how long a scheduler takes, in steps.
_HORIZONS = (
    "T_max",
    "T_0",
    "T_i",
    "total_steps",
    "total_iters",
    "total_size",
    "step_size",
    "milestones",
    "_milestones",
)
# Change the rate by the same factor at every step.
_DECAYS = (schedulers.ExponentialLR, schedulers.MultiplicativeLR)


class SampleScheduler:
    """Steps a scheduler, made for steps of the user's batch size, as samples pass.

    `step()` catches up with the run, so it may be called behind each batch, part or step.

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
        _note_taken(scheduler)
        optimizer = getattr(scheduler, "optimizer", None)
        # Also the one within another, as a framework wraps it.
        for known in (optimizer, getattr(optimizer, "optimizer", None)):
            if isinstance(known, Optimizer):
                _BY_SAMPLES.add(known)

    def step(self, *_: Any) -> None:
        """Advance to where the run stands: by none, one or several steps."""
        self.catch_up(self._due())

    def catch_up(self, due: int) -> None:
        """Advance to so many steps of the plain run."""
        # One that raises behind its end stays there: rounding may ask for a step more.
        end = getattr(self.scheduler, "total_steps", None) or math.inf
        while self.made < due:
            if getattr(self.scheduler, "last_epoch", 0) < end:
                self.scheduler.step()
            self.made += 1

    def skip(self) -> None:
        """Stand where the run does; what was due and not stepped is left out."""
        self.made = self._due()

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # asked for while it is copied
            raise AttributeError(name)
        return getattr(self.scheduler, name)


class SampleSchedule:
    """Steps a scheduler once for each `base_batch_size` samples, whatever the size of the steps.

        schedule = SampleSchedule(CosineAnnealingLR(optimizer, T_max=1000), base_batch_size=64)
        ...
        schedule.step(controller.step())

    What a `BatchController` returns also tells where an epoch ends: its rest counts as a step, as
    in the plain loop. Of a plain number of samples, those that do not make up a step yet are
    carried over; `ends_epoch` says that they make one.

    Attributes:
        scheduler: The wrapped one, made for steps of the base batch size.
        base_batch_size: Samples of one of its steps.
    """

    def __init__(self, scheduler: Any, base_batch_size: int) -> None:
        """Wrap a torch scheduler, or anything with its methods.

        Raises:
            ConfigurationError: It needs a metric at each step, or the batch size is not positive.
        """
        require_positive("base_batch_size", base_batch_size)
        require_steps(scheduler)
        self.scheduler, self.base_batch_size = scheduler, base_batch_size
        self._stepper = SampleScheduler(scheduler, lambda: self._complete)
        self._carry = self._complete = 0

    def step(self, samples: int, *, ends_epoch: bool = False) -> int:
        """Advance by the samples of one optimizer step and return the scheduler steps made.

        Args:
            samples: Of the step; 0 where there was none.
            ends_epoch: Nothing more comes of the epoch.

        Raises:
            ConfigurationError: `samples` is negative.
        """
        if samples < 0:
            raise ConfigurationError(
                f"Expected the samples of one step, got {samples}. Pass a difference of counts."
            )
        if isinstance(samples, StepSamples) and samples.base_batch_size == self.base_batch_size:
            steps = samples.plain_steps
        else:
            steps, self._carry = divmod(self._carry + samples, self.base_batch_size)
            if ends_epoch and self._carry:
                steps, self._carry = steps + 1, 0
        self._complete += steps
        self._stepper.step()
        return steps

    def get_last_lr(self) -> list[Any]:
        """Return the learning rates of the groups, without any coupling to the batch size."""
        return self.scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped scheduler's state and the carried samples."""
        return {"scheduler": self.scheduler.state_dict(), "carry": self._carry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.scheduler.load_state_dict(state["scheduler"])
        self._carry = state["carry"]


def never() -> bool:
    """No step was left out."""
    return False


_BY_SAMPLES: WeakSet[Optimizer] = WeakSet()
_TAKEN: WeakSet[Any] = WeakSet()


def _note_taken(scheduler: Any) -> None:
    """Note a scheduler that goes by samples, with those that it is made of."""
    with suppress(TypeError):  # of a class that cannot be referred to weakly
        _TAKEN.add(scheduler)
    for inner in (getattr(scheduler, "scheduler", None), *getattr(scheduler, "_schedulers", ())):
        if inner is not None:
            _note_taken(inner)


def goes_by_samples(scheduler: Any) -> bool:
    """Whether this very scheduler was made to go by samples, or is part of one that was."""
    return scheduler in _TAKEN


def counts_samples(optimizer: Optimizer) -> bool:
    """Whether a schedule of this optimizer was made to go by samples."""
    return optimizer in _BY_SAMPLES


def follows_a_metric(scheduler: Any) -> bool:
    """Whether a scheduler is stepped with the results of evaluations, not by steps."""
    name = type(scheduler).__name__
    return name == "GreedyLR" or isinstance(scheduler, schedulers.ReduceLROnPlateau)


def require_steps(scheduler: Any) -> None:
    """Raise ConfigurationError for a scheduler that does not count steps by itself."""
    if hasattr(scheduler, "step_update"):  # as timm's
        raise ConfigurationError(
            f"Expected a scheduler that counts steps by itself, got {type(scheduler).__name__}, "
            "which is told how many there were. Step it yourself, with those of your batch size: "
            "scheduler.step_update(controller.plain_steps)."
        )
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        name = getattr(scheduler, "__name__", type(scheduler).__name__)
        raise ConfigurationError(
            f"Expected a scheduler that was made for the optimizer and has step(), got {name}."
        )
    if follows_a_metric(scheduler):
        raise ConfigurationError(
            f"Expected a scheduler that counts steps, got {type(scheduler).__name__}, which "
            "follows a metric. Step it yourself, after each evaluation."
        )


def horizon_of(scheduler: Any) -> str | None:
    """Return what says how long a scheduler takes, counted in steps; None where nothing does."""
    inner: list[Any] = getattr(scheduler, "_schedulers", [])
    if inner:
        found = [text for text in map(horizon_of, inner) if text is not None]
        marks: list[int] = getattr(scheduler, "_milestones", [])
        return "; ".join([*([f"milestones={list(marks)}"] if marks else []), *found]) or None
    if isinstance(scheduler, schedulers.LambdaLR):
        return "a function of the step"
    if isinstance(scheduler, _DECAYS):
        return "a factor a step"
    for name in _HORIZONS:
        value: Any = getattr(scheduler, name, None)
        if value is not None:
            shown = sorted(value) if name == "milestones" else value
            return f"{name}={shown}"
    return None
