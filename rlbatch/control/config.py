"""The settings of a `BatchController`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Literal

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError
from rlbatch.signals import cadence
from rlbatch.signals.record import Array, Coupling


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller may do, and what it counts.

    Attributes:
        min_batch_size: Smallest batch size it may choose; None: a sixteenth of the user's, or the
            user's own in a run without a target or budget.
        max_batch_size: Largest; None: 64 times the user's. At most the data set's size in any case.
        micro_batch_size: Most samples in one forward and backward pass; None: no limit. Set it to
            what fits into the device's memory: larger batches are then accumulated. `auto` finds
            it out, with passes inside of `BatchController.within_memory`.
        divisible: The loss of a batch is a mean, to which parts add up with their weights. False
            for one that compares the samples of a batch (contrastive, triplet, Dice): then no batch
            is divided, and none exceeds `micro_batch_size`.
        memory_limit: Bytes that `auto` may use; None: what is free on a GPU, and half of a
            machine's memory on a CPU, where the bytes saved for the backward pass are counted.
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
        first_chunk_steps: Optimizer steps before the first decision.
        min_chunk_steps: Fewest between two decisions, after the first few.
        chunk_growth: A chunk has at least this share of the steps so far.
        max_chunk_steps: Most optimizer steps between two decisions.
        max_log2_change: Limit of one decision's change of log2(batch size); None for none.
        cooldown: Decisions to stay after a change.
        fallback: Name of the policy that decides where a learned one sees what it never saw in
            training; None for nobody.
        shadow: Decide and log, but change nothing.
        guard: When a chunk is rolled back; None never.
        noise_rate: Of the first n steps, about this times the square root of n are divided in two
            to measure the gradient noise; 0 for none, None as the policy wants it.
        off_when: Asked before each decision, on rank 0; once it returns True, the run goes on at
            the user's batch size. `rlbatch.control.off_switch.SignalSwitch` listens to a signal.
        on_error: What follows when deciding or logging fails: `off` warns and lets the training go
            on at the user's batch size, `raise` raises.
        log_dir: Folder of the episode log; None writes none.
    """

    min_batch_size: int | None = None
    max_batch_size: int | None = None
    micro_batch_size: int | Literal["auto"] | None = None
    divisible: bool = True
    memory_limit: int | None = None
    lr_coupling: Coupling | str = Coupling.SQRT
    target_loss: float | None = None
    budget: float | None = None
    epochs: float | None = None
    cost: Literal["seconds", "samples"] = "seconds"
    step_seconds: Callable[[float | Array], Array] | None = None
    first_chunk_steps: int = 1
    min_chunk_steps: int = 4
    chunk_growth: float = 0.1
    max_chunk_steps: int = 200
    max_log2_change: float | None = None
    cooldown: int = 0
    fallback: str | None = None
    shadow: bool = False
    guard: GuardConfig | None = field(default_factory=GuardConfig)
    noise_rate: float | None = None
    off_when: Callable[[], bool] | None = None
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
            if name == "micro_batch_size" and value == "auto":
                continue
            if value is not None and (isinstance(value, bool | str) or value < 1):
                raise ConfigurationError(f"{name} must be at least 1 sample, got {value!r}.")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise ConfigurationError(
                f"memory_limit must be a number of bytes, got {self.memory_limit}."
            )
        self._require_number_that_fits()
        steps = self.first_chunk_steps, self.min_chunk_steps, self.max_chunk_steps
        if not 1 <= steps[0] <= steps[1] <= steps[2] or self.chunk_growth < 0:
            raise ConfigurationError(
                "Expected 1 <= first_chunk_steps <= min_chunk_steps <= max_chunk_steps and "
                f"chunk_growth >= 0, got {steps} and {self.chunk_growth}."
            )
        self._require_epochs()
        if self.noise_rate is not None and not self.noise_rate >= 0.0:
            raise ConfigurationError(f"noise_rate must not be negative, got {self.noise_rate}.")
        choices = {"cost": ("seconds", "samples"), "on_error": ("off", "raise")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}."
                )

    def _require_number_that_fits(self) -> None:
        if not self.divisible and self.micro_batch_size == "auto":
            raise ConfigurationError(
                "micro_batch_size='auto' divides a batch that does not fit, and with "
                "divisible=False none is divided. Give the number of samples that fits."
            )

    def _require_epochs(self) -> None:
        if self.epochs is not None and not 0.0 < self.epochs < math.inf:
            raise ConfigurationError(
                f"epochs must be positive and finite, or None if unknown, got {self.epochs}."
            )

    @property
    def has_aim(self) -> bool:
        """Whether a target or a budget was named; without, a run goes on for its epochs."""
        return self.target_loss is not None or self.budget is not None

    def lasting(self, epochs: float) -> ControllerConfig:
        """Return the settings of a run planned for so many epochs, unless they say otherwise."""
        if self.epochs is not None or not 0.0 < epochs < math.inf:
            return self
        return replace(self, epochs=epochs)

    @property
    def known_micro_batch_size(self) -> int | None:
        """`micro_batch_size` where nothing can find it out: a framework runs the passes.

        Raises:
            ConfigurationError: It is `auto`.
        """
        if self.micro_batch_size == "auto":
            raise ConfigurationError(
                "micro_batch_size='auto' needs a loop whose passes stand within "
                "BatchController.within_memory(), and this framework runs them itself. Give a "
                "number of samples that fits."
            )
        return self.micro_batch_size

    def limits(
        self, base_batch_size: int, dataset_size: int, world_size: int = 1
    ) -> tuple[int, int]:
        """Return the smallest and largest batch size for a user's batch size and data set.

        Every rank gets a sample of each batch.

        Raises:
            ConfigurationError: The user's batch size lies outside of them.
        """
        lowest = max(1, base_batch_size // 16) if self.has_aim else base_batch_size
        low = self.min_batch_size or lowest
        low = max(low, world_size)
        high = 64 * base_batch_size if self.max_batch_size is None else self.max_batch_size
        high = min(high, max(dataset_size, base_batch_size))
        if not self.divisible and isinstance(self.micro_batch_size, int):
            high = min(high, self.micro_batch_size * world_size)
        if not low <= base_batch_size <= high:
            raise ConfigurationError(
                f"The loader's batch size {base_batch_size} must lie between min_batch_size {low} "
                f"and max_batch_size {high}. Move the limits."
            )
        return low, high

    def chunk_steps(self, steps_done: int) -> int:
        """Return the optimizer steps of the chunk that starts after `steps_done` steps."""
        return int(
            cadence.chunk_steps(
                steps_done,
                self.min_chunk_steps,
                self.chunk_growth,
                self.max_chunk_steps,
                self.first_chunk_steps,
            )
        )
