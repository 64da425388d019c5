"""The settings of a `BatchController`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Literal

from rlbatch.arguments import (
    real_number,
    require_function,
    require_kind,
    require_path,
    require_switch,
    require_whole,
    shown,
)
from rlbatch.control.guard import GuardConfig
from rlbatch.control.limits import Limits
from rlbatch.errors import ConfigurationError
from rlbatch.signals.cadence import Cadence, measuring_rate
from rlbatch.signals.record import Array, Coupling
from rlbatch.tracking import Tracker

AUTO = "auto"
"""Of settings that follow from others."""


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller may do, and what it counts.

    Attributes:
        limits: Which batch sizes it may choose, and how many samples fit into a pass.
        cadence: How many optimizer steps lie between two decisions.
        lr_coupling: How the learning rate follows the batch size.
        target_loss: Validation loss that the run wants to reach, if there is one. Give the losses
            to `BatchController.report_validation`.
        budget: Cost that the run may spend, if it is limited; in the unit of `cost`.
        epochs: How many epochs the run and its learning-rate schedule are made for, if that is
            known. Lightning, the Hugging Face Trainer and Keras tell it themselves. Without a
            target or a budget it is what the run is for; beside one, a policy reckons with it where
            the optimizer has a scheduler (make it before `BatchController.loader`).
        cost: What is saved: `seconds` or `samples`.
        step_seconds: Seconds of one step at batch sizes of any shape, for example a device
            profile's `step_seconds`; None measures by the clock on the wall.
        max_log2_change: Limit of one decision's change of log2(batch size); None for none.
        cooldown: Decisions to stay after a change.
        fallback: Name of the policy that decides where a learned one sees what it never saw in
            training; None for nobody. `auto` is `saving-ramp` behind a learned policy, which stays
            in a run of unknown length, and nobody behind a rule.
        shadow: Decide and log, but change nothing.
        guard: When a chunk is rolled back; None never.
        noise_rate: In about this times the square root of n of the first n steps the gradient noise
            is measured; 0 for none, None as the policy wants it.
        off_when: Asked before each decision, on rank 0; once it returns True, the run goes on at
            the user's batch size. `rlbatch.control.off_switch.SignalSwitch` listens to a signal.
        on_error: What follows when deciding or logging fails: `off` warns and lets the training go
            on at the user's batch size, `raise` raises.
        log_dir: Folder of the episode log; None writes none.
        trackers: Experiment trackers that are told the same, on rank 0; see
            `rlbatch.tracking.Tracker` and `rlbatch.integrations.trackers`.
    """

    limits: Limits = field(default_factory=Limits)
    cadence: Cadence = field(default_factory=Cadence)
    lr_coupling: Coupling | str = Coupling.SQRT
    target_loss: float | None = None
    budget: float | None = None
    epochs: float | None = None
    cost: Literal["seconds", "samples"] = "seconds"
    step_seconds: Callable[[float | Array], Array] | None = None
    max_log2_change: float | None = None
    cooldown: int = 0
    fallback: str | None = AUTO
    shadow: bool = False
    guard: GuardConfig | None = field(default_factory=GuardConfig)
    noise_rate: float | None = None
    off_when: Callable[[], bool] | None = None
    on_error: Literal["off", "raise"] = "off"
    log_dir: str | PathLike[str] | None = None
    trackers: Sequence[Tracker] = ()

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing or contradict themselves; keep plain values."""
        try:
            object.__setattr__(self, "lr_coupling", Coupling(self.lr_coupling))
        except ValueError as error:
            known = ", ".join(rule.value for rule in Coupling)
            raise ConfigurationError(
                f"lr_coupling must be one of {known}, got {shown(self.lr_coupling)}."
            ) from error
        self._check_numbers()
        self._check_objects()
        if self.target_loss is not None and self.budget is not None:
            raise ConfigurationError(
                "Give a target_loss or a budget, got both: a run ends at one of them."
            )
        choices = {"cost": ("seconds", "samples"), "on_error": ("off", "raise")}
        for name, known in choices.items():
            value: object = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ConfigurationError(
                    f"{name} must be {' or '.join(known)}, got {shown(value)}."
                )

    def _check_numbers(self) -> None:
        for name in ("target_loss", "budget", "epochs", "max_log2_change"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.noise_rate is not None:
            rate = real_number(self.noise_rate)
            if rate is None or rate < 0.0:
                raise ConfigurationError(
                    "noise_rate must be a number of at least 0, or None for what the policy "
                    f"wants; got {shown(self.noise_rate)}."
                )
            object.__setattr__(self, "noise_rate", rate)
        cooldown = require_whole("cooldown", self.cooldown, "a whole number of decisions", 0)
        object.__setattr__(self, "cooldown", cooldown)
        object.__setattr__(self, "shadow", require_switch("shadow", self.shadow))

    def _check_objects(self) -> None:
        require_kind("limits", self.limits, Limits, "Or give max_batch_size and the like alone.")
        require_kind(
            "cadence", self.cadence, Cadence, "Or give min_chunk_steps and the like alone."
        )
        if self.guard is not None:
            require_kind("guard", self.guard, GuardConfig, "None rolls nothing back.")
        require_function("step_seconds", self.step_seconds, "a function of a batch size")
        require_function("off_when", self.off_when, "a function without arguments")
        require_path("fallback", self.fallback, "the name of a policy")
        require_path("log_dir", self.log_dir, "a folder")
        object.__setattr__(self, "trackers", _trackers(self.trackers))

    @property
    def has_aim(self) -> bool:
        """Whether a target or a budget was named; without, a run goes on for its epochs."""
        return self.target_loss is not None or self.budget is not None

    def lasting(self, epochs: float) -> ControllerConfig:
        """Return the settings of a run planned for so many epochs, unless they say otherwise."""
        if self.epochs is not None or not 0.0 < epochs < math.inf:
            return self
        return replace(self, epochs=epochs)

    def measuring_rate(self, wanted: float) -> float | None:
        """Return how densely the gradient noise is measured; None for not at all.

        Args:
            wanted: By the policy; 0 for not at all.
        """
        usual = measuring_rate(wanted, Coupling(self.lr_coupling))
        if not usual:
            return None
        return usual if self.noise_rate is None else self.noise_rate

    def in_parts_of(self, samples: int) -> ControllerConfig:
        """Return the settings of a run whose passes take so many samples at most."""
        return replace(self, limits=replace(self.limits, micro_batch_size=samples))

    def bounds(
        self, base_batch_size: int, dataset_size: int, world_size: int = 1
    ) -> tuple[int, int]:
        """Return the smallest and largest batch size, see `Limits.bounds`.

        Raises:
            ConfigurationError: The user's batch size lies outside of them.
        """
        return self.limits.bounds(
            base_batch_size, dataset_size, world_size, may_shrink=self.has_aim
        )


def _positive(name: str, value: object) -> float | None:
    """Return a positive, finite number as Python's own; None passes."""
    number = None if value is None else real_number(value)
    if value is not None and (number is None or not 0.0 < number < math.inf):
        raise ConfigurationError(
            f"{name} must be a positive, finite number, or None where there is none; got "
            f"{shown(value)}."
        )
    return number


def _trackers(trackers: Any) -> tuple[Tracker, ...]:
    """Return trackers as a tuple: a generator would be empty the second time."""
    try:
        given: list[Any] = list(trackers)
    except TypeError:
        given = [None]
    if not all(isinstance(one, Tracker) and not isinstance(one, type) for one in given):
        raise ConfigurationError(
            "trackers must be a list of objects with begin and log, as "
            f"rlbatch.tracking.Tracker has them; got {shown(trackers)}. A class has to be called "
            "first."
        )
    return tuple(given)
