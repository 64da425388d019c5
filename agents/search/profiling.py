"""Measures a task's steps on this machine, and makes a `DeviceProfile` of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rlbatch.agents.search.energy import EnergyMeter, find_meter
from rlbatch.agents.search.largest import Largest, find_largest
from rlbatch.agents.search.passes import PassRunner
from rlbatch.agents.search.profile_fit import FittedProfile, fit_profile
from rlbatch.agents.search.step_costs import ROUNDS, StepCost, joules_of_step, time_sizes
from rlbatch.control.memory import MARGIN, MemoryGauge, make_gauge
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError

MOST = 65_536
"""Larger micro-batches are not looked for."""


@dataclass(frozen=True)
class Measured:
    """What a machine does with a task.

    Attributes:
        device: Its name.
        fitted: The profile.
        steps: The timings.
        largest: The largest micro-batch that fits.
        meter: What told the energy; None where nothing does.
    """

    device: str
    fitted: FittedProfile
    steps: tuple[StepCost, ...]
    largest: Largest
    meter: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "device": self.device,
            "profile": asdict(self.fitted.profile),
            "intervals": {key: list(value) for key, value in self.fitted.intervals.items()},
            "error": self.fitted.error,
            "energy": self.meter,
            "largest": asdict(self.largest),
            "steps": [asdict(step) for step in self.steps],
        }


def measure(  # noqa: PLR0913 - every argument is a condition of the measurement
    task: Task,
    name: str,
    *,
    device: torch.device | None = None,
    memory_limit: int | None = None,
    margin: float = MARGIN,
    most: int = MOST,
    rounds: int = ROUNDS,
    max_seconds: float = 2.0,
    on_size: Callable[[int, int], None] | None = None,
) -> Measured:
    """Return what steps of a task cost on a device.

    Args:
        task: What is trained.
        name: Of the profile.
        device: Where; None leaves the model where the task puts it.
        memory_limit: Bytes that a pass may take; None for all that are free on a GPU and half of
            the machine's memory on a CPU.
        margin: Share of the limit to leave free.
        most: Largest micro-batch of interest.
        rounds: Timings of each size.
        max_seconds: No pass much longer than that is run.
        on_size: Called with the timings done and their number.

    Raises:
        ConfigurationError: Not one sample fits, or too few sizes for a profile.
    """
    runner = PassRunner(task, device)
    gauge = make_gauge(runner.device, memory_limit)
    watch = _Stopwatch(max_seconds)
    _warm_up(runner, gauge)
    largest = find_largest(
        lambda size: watch.timed(lambda: runner.bytes_needed(size, gauge)),
        gauge.free(),
        most,
        margin,
        watch.too_long,
    )
    if largest.size < 1:
        raise ConfigurationError(
            f"Not even one sample of {task.name} fits into {largest.limit:,.0f} bytes. Allow more."
        )
    sizes = _sizes_to_time(largest)
    steps = time_sizes(runner, sizes, rounds=rounds, max_seconds=max_seconds, on_size=on_size)
    steps = [replace(step, bytes=dict(largest.passes).get(step.size)) for step in steps]
    meter = find_meter(runner.device)
    if meter is not None:
        steps = [_with_joules(runner, step, meter) for step in steps]
    return Measured(
        device=_device_name(runner.device),
        fitted=fit_profile(name, steps, largest.size),
        steps=tuple(steps),
        largest=largest,
        meter=None if meter is None else meter.name,
    )


def _sizes_to_time(largest: Largest) -> list[int]:
    """Return those that were run, and powers of two up to the largest of them."""
    ran = [size for size, needed in largest.passes if needed is not None and size <= largest.size]
    powers = [2**k for k in range(int(math.log2(largest.size)) + 1)]
    return sorted({size for size in [*powers, *ran] if size <= max(ran)})


def _warm_up(runner: PassRunner, gauge: MemoryGauge) -> None:
    """Let a GPU load what its first pass loads: that is slow, and what stays is not a pass's."""
    runner.bytes_needed(1, gauge)
    with gauge.watch():  # it counts from what is there before a pass
        pass


def _with_joules(runner: PassRunner, step: StepCost, meter: EnergyMeter) -> StepCost:
    return replace(step, joules=joules_of_step(runner, step.size, meter))


class _Stopwatch:
    """Times passes, to end before they take too long."""

    def __init__(self, max_seconds: float) -> None:
        self._most, self._last = max_seconds, 0.0

    def timed(self, work: Callable[[], int | None]) -> int | None:
        began = time.perf_counter()
        result = work()
        self._last = time.perf_counter() - began
        return result

    def too_long(self) -> bool:
        """Whether a pass of twice the size would take longer than allowed."""
        return 2.0 * self._last > self._most


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
