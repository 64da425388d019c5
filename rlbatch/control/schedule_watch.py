"""Notices a learning-rate schedule that counts optimizer steps."""

from __future__ import annotations

import gc
import warnings
from typing import Any, NamedTuple

from torch.optim import Optimizer

from rlbatch.control.rate_watch import differ, known_rates, known_settings
from rlbatch.data.delivery import Delivered
from rlbatch.data.sample_schedule import (
    counts_samples,
    follows_a_metric,
    goes_by_samples,
    horizon_of,
)

_LOOKS = 2  # epochs in whose first step schedulers are looked for: it takes time
_REMEDY = (
    "Before the loop call scheduler = controller.schedule(scheduler), which goes by samples, and "
    "leave the rest as it is."
)
_BY_HAND = " What is set by hand goes by controller.plain_steps."
_EVERY_STEP = (
    "{} is stepped at every batch, and a run whose batch size changes has fewer or more of them: "
    f"the schedule would end late or early. {_REMEDY}{_BY_HAND}"
)
_WITHIN_EPOCH = (
    "{} has moved within an epoch, and a run whose batch size changes has fewer or more steps: "
    f"what counts them ends late or early. {_REMEDY}{_BY_HAND}"
)
_EVERY_METRIC = (
    "{} follows a metric and is stepped at every batch: its patience counts batches, of which a "
    "run whose batch size changes has fewer or more. Step it after a validation, or once an epoch."
)


_SETTINGS = ("weight_decay", "momentum", "betas")


class _Places(NamedTuple):
    """Where a run's schedules stand.

    Attributes:
        epochs: Of torch's schedulers, in their own count, but for those that go by samples.
        rates: Of each parameter group.
        settings: Others of each parameter group that schedules move.
    """

    epochs: list[Any]
    rates: list[Any]
    settings: list[Any]


class ScheduleWatch:
    """Looks whether a schedule has moved within an epoch, at a step's cost twice an epoch.

    Between the first two steps, and from the first step of each epoch to its end: a schedule may
    begin late. Schedules by epochs move between epochs, and those that the controller steps are
    known. A rate that lies on a device is not waited for: there torch's schedulers alone tell.

    Attributes:
        waits: The next step is one to be told of.
        steps_asked: The loop asks for the steps of the plain run: what it sets goes by them.
    """

    def __init__(self, optimizer: Optimizer, samples: int = 0) -> None:
        """Watch the schedules of an optimizer.

        Args:
            optimizer: That of the run.
            samples: Of an epoch.
        """
        self._optimizer, self._samples = optimizer, samples
        self._schedulers: list[Any] = []  # of torch
        self._looks_left = _LOOKS
        self._before: _Places | None = None  # behind the first step of the epoch
        self._metric: list[int] = []  # places of those that follow a metric, then
        self._is_second = False  # the step that comes, of the first epoch that has one
        self._begins, self._is_new, self._done = True, True, False
        self.waits, self.steps_asked = True, False

    def after_step(self) -> None:
        """The optimizer has stepped: note where its schedules stand, if the step is the first."""
        if self._begins and not self._done:
            self._begins = False
            self._look_for_schedulers()
            self._before, self._metric = self._places(), self._metric_places()
            self._is_second = self._is_new
        self.waits = self._is_second

    def before_step(self, delivered: Delivered) -> None:
        """The optimizer is about to step; warn where a schedule has moved since its first step."""
        if not self._is_second or self._before is None:
            return
        self._is_second = self._is_new = self.waits = False
        if self._metric_places() != self._metric:
            self._say(_EVERY_METRIC.format(self._named(metric=True)))
        elif (moved := self._moved()) and not self._by_place(delivered.step_start):
            self._say(_EVERY_STEP.format(moved))

    def end_epoch(self) -> None:
        """The loop has left an epoch: warn where a schedule has moved within it."""
        if self._before is not None:
            # One that follows a metric may have moved with a validation.
            moved = self._moved() if self._metric_places() == self._metric else None
            if moved and not self._by_place(self._samples):
                self._say(_WITHIN_EPOCH.format(moved))
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """An epoch begins: what has moved before it does not count."""
        self._before, self._begins, self._is_second = None, True, False
        self.waits = True

    def _moved(self) -> str | None:
        """Return what counts steps and has moved since the epoch's first one; None for nothing."""
        now, before = self._places(), self._before
        if before is None:
            return None
        if differ(now.epochs, before.epochs):
            return self._named()
        if self.steps_asked or counts_samples(self._optimizer):
            return None
        if differ(now.rates, before.rates):
            return self._named()
        for number, name in enumerate(_SETTINGS):
            old, new = ([group[number] for group in p.settings] for p in (before, now))
            if differ(new, old):
                return f"the setting {name} of the optimizer"
        return None

    def _by_place(self, samples: int) -> bool:
        """Whether the one that moved was told a part of an epoch, of so many of its samples."""
        places = [scheduler.T_cur % 1.0 for scheduler in self._schedulers if _is_told(scheduler)]
        known = samples % self._samples / self._samples if self._samples else -1.0
        return bool(places) and all(abs(place - known) < 1e-6 for place in places)

    def _say(self, text: str) -> None:
        self._done, self._before = True, None
        warnings.warn(f"rlbatch: {text}", RuntimeWarning, stacklevel=6)

    def _places(self) -> _Places:
        # A chain has no epoch of its own: what it is made of is found beside it.
        epochs = [getattr(s, "last_epoch", None) for s in self._counting()]
        optimizer = self._optimizer
        return _Places(epochs, known_rates(optimizer), known_settings(optimizer, _SETTINGS))

    def _counting(self) -> list[Any]:
        return [s for s in self._schedulers if not (follows_a_metric(s) or goes_by_samples(s))]

    def _metric_places(self) -> list[int]:
        return [s.last_epoch for s in self._schedulers if follows_a_metric(s)]

    def _look_for_schedulers(self) -> None:
        if self._looks_left:
            self._looks_left -= 1
            self._schedulers = schedulers_of(self._optimizer)

    def _named(self, *, metric: bool = False) -> str:
        found = [s for s in self._schedulers if follows_a_metric(s)] if metric else self._counting()
        for scheduler in found:
            horizon = horizon_of(scheduler)
            name = type(scheduler).__name__
            return f"the schedule {name}" + (f" ({horizon})" if horizon else "")
        return "the learning rate"


def schedulers_of(optimizer: Optimizer) -> list[Any]:
    """Return the schedulers of torch, or like torch's, that count steps of an optimizer.

    An optimizer does not know them: those are looked for that know it.
    """
    found: dict[int, Any] = {}
    for holder in gc.get_referrers(optimizer):
        owners = [holder]
        if isinstance(holder, dict):  # an instance's own, in some versions of Python
            known: dict[Any, Any] = holder
            owners = gc.get_referrers(known) if "last_epoch" in known else []
        for owner in owners:
            if hasattr(type(owner), "get_last_lr"):
                found[id(owner)] = owner
    return [s for s in found.values() if getattr(s, "optimizer", None) is optimizer]


def _is_told(scheduler: Any) -> bool:
    """Whether a scheduler was told a place within an epoch, and did not count steps itself."""
    return isinstance(getattr(scheduler, "T_cur", 0), float)
