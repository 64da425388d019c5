"""The settings of a `BatchController`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError
from rlbatch.signals.monitor import MEASURED_FRACTION, MEASURED_STEPS
from rlbatch.signals.record import Array, Coupling


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller may do, and what it counts.

    Attributes:
        min_batch_size: Smallest batch size it may choose; None: 4, or the user's if that is less.
        max_batch_size: Largest; None: 64 times the user's. At most the data set's size in any case.
        micro_batch_size: Most samples in one forward and backward pass; None: no limit. Set it to
            what fits into the device's memory: larger batches are then accumulated.
        lr_coupling: How the learning rate follows the batch size.
        target_loss: Validation loss that the run wants to reach, if there is one. Give the losses
            to `BatchController.report_validation`.
        budget: Cost that the run may spend, if it is limited; in the unit of `cost`.
        cost: What is saved: `seconds` or `samples`.
        step_seconds: Seconds of one step at batch sizes of any shape, for example a device
            profile's `step_seconds`; None measures by the clock on the wall.
        min_chunk_steps: Fewest optimizer steps between two decisions.
        chunk_growth: A chunk has at least this share of the steps so far.
        max_chunk_steps: Most optimizer steps between two decisions.
        max_log2_change: Limit of one decision's change of log2(batch size); None for none.
        cooldown: Decisions to stay after a change.
        fallback: Name of the policy that decides where a learned one sees what it never saw in
            training; None for nobody.
        shadow: Decide and log, but change nothing.
        guard: When a chunk is rolled back; None never.
        noise_steps: Steps of a chunk whose gradient noise is measured, at most.
        noise_fraction: Share of all steps that are divided in two for that, at most.
        on_error: What follows when deciding or logging fails: `off` warns and lets the training go
            on at the user's batch size, `raise` raises.
        log_dir: Folder of the episode log; None writes none.
    """

    min_batch_size: int | None = None
    max_batch_size: int | None = None
    micro_batch_size: int | None = None
    lr_coupling: Coupling | str = Coupling.SQRT
    target_loss: float | None = None
    budget: float | None = None
    cost: Literal["seconds", "samples"] = "seconds"
    step_seconds: Callable[[float | Array], Array] | None = None
    min_chunk_steps: int = 4
    chunk_growth: float = 0.1
    max_chunk_steps: int = 200
    max_log2_change: float | None = None
    cooldown: int = 0
    fallback: str | None = None
    shadow: bool = False
    guard: GuardConfig | None = field(default_factory=GuardConfig)
    noise_steps: int = MEASURED_STEPS
    noise_fraction: float = MEASURED_FRACTION
    on_error: Literal["off", "raise"] = "off"
    log_dir: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that contradict themselves."""
        try:
            object.__setattr__(self, "lr_coupling", Coupling(self.lr_coupling))
        except ValueError as error:
            known = ", ".join(rule.value for rule in Coupling)
            raise ConfigurationError(
                f"lr_coupling must be one of {known}, got {self.lr_coupling!r}."
            ) from error
        for name in ("min_batch_size", "max_batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ConfigurationError(f"{name} must be at least 1 sample, got {value}.")
        if not 1 <= self.min_chunk_steps <= self.max_chunk_steps or self.chunk_growth < 0:
            raise ConfigurationError(
                "Expected 1 <= min_chunk_steps <= max_chunk_steps and chunk_growth >= 0, got "
                f"{self.min_chunk_steps}, {self.max_chunk_steps} and {self.chunk_growth}."
            )
        if not 0.0 <= self.noise_fraction <= 1.0 or self.noise_steps < 0:
            raise ConfigurationError(
                "Expected 0 <= noise_fraction <= 1 and noise_steps >= 0, got "
                f"{self.noise_fraction} and {self.noise_steps}."
            )
        choices = {"cost": ("seconds", "samples"), "on_error": ("off", "raise")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}."
                )

    def limits(self, base_batch_size: int, dataset_size: int) -> tuple[int, int]:
        """Return the smallest and largest batch size for a user's batch size and data set.

        Raises:
            ConfigurationError: The user's batch size lies outside of them.
        """
        low = min(base_batch_size, 4) if self.min_batch_size is None else self.min_batch_size
        high = 64 * base_batch_size if self.max_batch_size is None else self.max_batch_size
        high = min(high, max(dataset_size, base_batch_size))
        if not low <= base_batch_size <= high:
            raise ConfigurationError(
                f"The loader's batch size {base_batch_size} must lie between min_batch_size {low} "
                f"and max_batch_size {high}. Move the limits."
            )
        return low, high

    def chunk_steps(self, steps_done: int) -> int:
        """Return the optimizer steps of the chunk that starts after `steps_done` steps."""
        wanted = max(self.min_chunk_steps, int(self.chunk_growth * steps_done))
        return min(wanted, self.max_chunk_steps)
