"""The clocks of a live run: what a step costs, by a device profile, by counting, or by the wall."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost, step_cost_curve
from rlbatch.errors import ConfigurationError
from rlbatch.signals import step_time
from rlbatch.signals.record import Array
from rlbatch.signals.step_time import FLOOR_SECONDS

MEASURED_SHARE = 0.25
"""What measuring the gradient noise costs, of the forward and backward pass that it goes with.

As measured for a small CNN and a transformer on a CPU (`docs/overhead.md`). A perceptron of some
thousand weights, whose steps are all launches, pays about two passes.
"""


class Clock(Protocol):
    """Tells what the steps of a run cost."""

    def start(self) -> None:
        """Begin or resume timing, right before a step."""
        ...

    def lap(self, batch_size: int, measured: bool) -> float:
        """Return the cost of the step that has just ended.

        Args:
            batch_size: Samples of the step.
            measured: Its gradient noise was measured.
        """
        ...

    def end_chunk(self) -> None:
        """Take the laps since the last call as one observation."""
        ...

    def curve(self) -> tuple[Array, float]:
        """Return `Signals.step_cost_curve` and `Signals.step_cost_known`."""
        ...


def make_clock(
    profile: DeviceProfile | None,
    weights: CostWeights,
    base_batch_size: int,
    *,
    curve_known: bool = True,
) -> Clock:
    """Return the clock for a profile, or the wall clock for None.

    Args:
        profile: Of the device.
        weights: What counts as cost.
        base_batch_size: The task's.
        curve_known: Tell the profile's costs at every size, instead of what the sizes so far show.

    Raises:
        ConfigurationError: The wall clock is to count joules, or a mix.
    """
    if weights.samples == 1.0:
        return SampleClock()
    if profile is not None:
        made = ProfileClock if curve_known else WatchedProfileClock
        return made(profile, weights, base_batch_size)
    if weights.seconds != 1.0:
        raise ConfigurationError(
            f"The wall clock counts seconds only, got {weights}. "
            "Name a profile for energy or a mix."
        )
    return WallClock()


class SampleClock:
    """Cost is samples: exact on every machine."""

    def start(self) -> None:
        """Nothing runs here."""

    def lap(self, batch_size: int, measured: bool) -> float:
        """Return the samples."""
        del measured
        return float(batch_size)

    def end_chunk(self) -> None:
        """Nothing is observed here."""

    def curve(self) -> tuple[Array, float]:
        """Return the identity."""
        return step_time.known_curve(step_time.samples_of)


class ProfileClock:
    """Cost by a device profile: exact and repeatable whatever else the machine does.

    A measured step is charged `MEASURED_SHARE` of its pass more, if it is one pass.
    """

    def __init__(self, profile: DeviceProfile, weights: CostWeights, base_batch_size: int) -> None:
        """Compute the curve once; step costs are kept as they come up."""
        self._profile = profile
        self._weights = weights
        self._base = base_batch_size
        self._curve = step_cost_curve(profile, weights, base_batch_size)
        self._known: dict[tuple[int, bool], float] = {}

    def start(self) -> None:
        """Nothing runs here."""

    def lap(self, batch_size: int, measured: bool) -> float:
        """Return the profile's cost of the step."""
        key = (batch_size, measured)
        cost = self._known.get(key)
        if cost is None:
            cost = self._known[key] = self._cost(batch_size, measured)
        return cost

    def end_chunk(self) -> None:
        """Nothing is observed here."""

    def curve(self) -> tuple[Array, float]:
        """Return the profile's own curve."""
        return self._curve, 1.0

    def _cost(self, batch_size: int, measured: bool) -> float:
        profile, weights, base = self._profile, self._weights, self._base
        cost = float(step_cost(profile, weights, batch_size, base))
        limit = profile.max_micro_batch_size
        divided = batch_size > limit * profile.world_size
        if divided or not measured:  # parts that memory enforces show the noise for nothing
            return cost
        sync = profile.sync_seconds if profile.world_size > 1 else 0.0
        once = profile.update_seconds + sync  # a step, however many passes it has
        extra = MEASURED_SHARE * max(float(profile.step_seconds(batch_size)) - once, 0.0)
        single = max(weights.seconds, weights.samples, weights.joules) == 1.0
        seconds_unit = 1.0 if single else float(profile.step_seconds(base))
        joules_unit = 1.0 if single else float(profile.step_joules(base))
        watts = profile.idle_watts * profile.world_size
        return cost + extra * (
            weights.seconds / seconds_unit + weights.joules * watts / joules_unit
        )


class Watch:
    """Learns from the steps so far what a step costs at every size."""

    def __init__(self) -> None:
        """Know nothing about any size."""
        self.state: step_time.StepTimeState = {}
        self._laps: dict[int, list[tuple[bool, float]]] = {}

    def note(self, batch_size: int, measured: bool, cost: float) -> None:
        """Take one step of the chunk."""
        self._laps.setdefault(batch_size, []).append((measured, cost))

    def end_chunk(self) -> None:
        """Observe the median of each size, of steps without measurement where there are any."""
        for batch_size, laps in self._laps.items():
            plain = [cost for measured, cost in laps if not measured]
            costs = plain or [cost for _, cost in laps]
            self.state = step_time.observe(self.state, batch_size, float(np.median(costs)))
        self._laps = {}

    def curve(self) -> tuple[Array, float]:
        """Return the fitted line."""
        line = step_time.fit(self.state)
        return line.step_cost_curve(), line.known


class WatchedProfileClock(ProfileClock):
    """A profile's costs, of which a policy learns as much as from the clock on the wall."""

    def __init__(self, profile: DeviceProfile, weights: CostWeights, base_batch_size: int) -> None:
        """Begin to watch."""
        super().__init__(profile, weights, base_batch_size)
        self._watch = Watch()

    def lap(self, batch_size: int, measured: bool) -> float:
        """Return the profile's cost of the step, and note it."""
        cost = super().lap(batch_size, measured)
        self._watch.note(batch_size, measured, cost)
        return cost

    def end_chunk(self) -> None:
        """Learn from the chunk."""
        self._watch.end_chunk()

    def curve(self) -> tuple[Array, float]:
        """Return what the steps so far show."""
        return self._watch.curve()


class WallClock:
    """Cost in seconds as they pass; validation and decisions between `lap` and `start` are free."""

    def __init__(self) -> None:
        """Know nothing about any size."""
        self._watch = Watch()
        self._since = time.perf_counter()

    @property
    def state(self) -> step_time.StepTimeState:
        """What was observed."""
        return self._watch.state

    def start(self) -> None:
        """Set the hand to zero."""
        self._since = time.perf_counter()

    def lap(self, batch_size: int, measured: bool) -> float:
        """Return the seconds since `start` or the last lap."""
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, FLOOR_SECONDS), now
        self._watch.note(batch_size, measured, seconds)
        return seconds

    def end_chunk(self) -> None:
        """Learn from the chunk."""
        self._watch.end_chunk()

    def curve(self) -> tuple[Array, float]:
        """Return what the steps so far show."""
        return self._watch.curve()
