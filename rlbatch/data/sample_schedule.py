"""Learning rate schedules that go by samples, for steps of varying size."""

from __future__ import annotations

from typing import Any

from torch.optim import lr_scheduler as schedulers

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


class SampleSchedule:
    """Steps a scheduler once for each `base_batch_size` samples, whatever the size of the steps.

        schedule = SampleSchedule(CosineAnnealingLR(optimizer, T_max=1000), base_batch_size=64)
        ...
        optimizer.step()
        schedule.step(delivered.step_samples)

    Samples that do not make up a step yet are carried over.

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
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            raise ConfigurationError(
                "Expected a scheduler that counts steps, got ReduceLROnPlateau, which follows a "
                "metric. Step it yourself, after each evaluation."
            )
        self.scheduler, self.base_batch_size = scheduler, base_batch_size
        self._carry = 0

    def step(self, samples: int) -> int:
        """Advance by the samples of one optimizer step and return the scheduler steps made.

        Raises:
            ConfigurationError: `samples` is negative.
        """
        if samples < 0:
            raise ConfigurationError(
                f"Expected the samples of one step, got {samples}. Pass a difference of counts."
            )
        steps, self._carry = divmod(self._carry + samples, self.base_batch_size)
        for _ in range(steps):
            self.scheduler.step()
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


def scheduler_advice(scheduler: Any) -> str | None:
    """Say whether a scheduler's horizon, counted in steps, would stretch as the batch size changes.

    Returns:
        What would happen and what to do, or None where nothing would.
    """
    if isinstance(scheduler, (SampleSchedule, schedulers.ReduceLROnPlateau)):
        return None
    what = _horizon(scheduler)
    if what is None:
        return None
    return (
        f"{type(scheduler).__name__} counts optimizer steps ({what}): in samples its course "
        "stretches when the batch size grows and shrinks with it. Wrap it as "
        "SampleSchedule(scheduler, base_batch_size) and call step(samples)."
    )


def _horizon(scheduler: Any) -> str | None:
    inner: list[Any] = getattr(scheduler, "_schedulers", [])
    if inner:
        found = [text for text in map(_horizon, inner) if text is not None]
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
