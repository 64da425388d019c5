"""The conditions of a run: everything about it but the task, and what decides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rlbatch.control.guard import GuardConfig
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.errors import ConfigurationError
from rlbatch.signals.cadence import NOISE_RATE, measuring_rate
from rlbatch.signals.record import Coupling


@dataclass(frozen=True, kw_only=True)
class RunConditions:
    """What a run of a task is under.

    Attributes:
        seed: Of the weights, the order of the data and the random numbers within the model.
        coupling: How the learning rate follows the batch size.
        profile: Whose step costs count; None takes the wall clock.
        objective: When the run ends, and what cost is.
        start_batch_size: First batch size in force; None takes the task's.
        min_batch_size: Smallest that may be asked for.
        max_batch_size: Largest; None takes the task's, or else the training set's size.
        learning_rate_scale: Multiplies the task's learning rate.
        cadence: Steps of a chunk and between validations.
        planned_steps: Steps at the task's batch size for which its schedule is made. Needed if the
            task has a schedule; it advances with samples.
        plan_known: Tell `planned_steps` in the signals, as a user does who says how many epochs a
            run is made for.
        max_steps: Steps after which the run counts as exhausted.
        guard: When damaged chunks are rolled back; True by the default limits, False never.
        noise_rate: Of the first n steps, about this times the square root of n are measured. The
            clock charges what that costs. 0 for none; but AdaScale
            needs it and measures anyway.
        curve_known: Tell the profile's costs at every size, instead of what a run without a profile
            learns from its steps.
    """

    seed: int
    coupling: Coupling
    profile: DeviceProfile | None
    objective: Objective
    start_batch_size: int | None = None
    min_batch_size: int = 1
    max_batch_size: int | None = None
    learning_rate_scale: float = 1.0
    cadence: Cadence = field(default_factory=Cadence)
    planned_steps: int | None = None
    plan_known: bool = True
    max_steps: int | None = None
    guard: GuardConfig | bool = True
    noise_rate: float = NOISE_RATE
    curve_known: bool = True

    def __post_init__(self) -> None:
        """Refuse what no run can be under.

        Raises:
            ConfigurationError: A number is out of range.
        """
        if not (self.noise_rate >= 0.0 and self.learning_rate_scale > 0.0):
            raise ConfigurationError(
                "A run needs noise_rate >= 0 and learning_rate_scale > 0, got "
                f"{self.noise_rate} and {self.learning_rate_scale}."
            )
        for name in ("planned_steps", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1 step, got {value}.")

    def unwatched(self) -> RunConditions:
        """Return those of a run at one size, to compare with: without measuring or a guard."""
        return replace(self, noise_rate=0.0, guard=False)

    @property
    def measuring_rate(self) -> float:
        """`noise_rate`, or the usual one where the coupling cannot do without."""
        return measuring_rate(self.noise_rate, self.coupling)

    @property
    def guard_limits(self) -> GuardConfig | None:
        """Limits of the guard; None for no guard."""
        return (GuardConfig() if self.guard is True else self.guard) or None
