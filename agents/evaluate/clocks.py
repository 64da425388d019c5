"""What a benchmark counts as cost, by name: a device profile, the wall clock, or samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbatch.envs.profiles import CostWeights, DeviceProfile, resolve_profile, step_cost
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.record import Array

WALL = "wall"
SAMPLES = "samples"
UNTOLD = "untold"


@dataclass(frozen=True)
class CostClock:
    """A way to count cost.

    Attributes:
        name: As on the command line.
        profile: Whose step costs count; None for the wall clock.
        weights: What counts as cost.
        told: A policy is told the profile's costs from the start; else it learns from its steps
            what they cost, as a user's run does.
    """

    name: str
    profile: DeviceProfile | None
    weights: CostWeights
    told: bool = True

    def run_cost(
        self, steps: int | Array, batch_size: int, dataset_size: int, base_batch_size: int
    ) -> Array:
        """Return the cost of this many optimizer steps at one batch size, whole epochs of data.

        The last batch of an epoch holds what is left of it and costs accordingly.

        Args:
            steps: Optimizer steps, any shape.
            batch_size: Samples per optimizer step.
            dataset_size: Samples of an epoch.
            base_batch_size: The task's own batch size (unit of a mixed cost).

        Raises:
            ConfigurationError: The wall clock cannot be computed.
        """
        if self.profile is None:
            raise ConfigurationError(
                "The cost of steps on the wall clock cannot be computed. Name a profile."
            )
        rest = dataset_size % batch_size
        per_epoch = -(-dataset_size // batch_size)
        cut = np.asarray(steps) // per_epoch if rest else np.zeros_like(np.asarray(steps))
        sizes = np.array([batch_size, rest or batch_size], dtype=np.float64)
        full_cost, rest_cost = step_cost(self.profile, self.weights, sizes, base_batch_size)
        return (np.asarray(steps) - cut) * full_cost + cut * rest_cost


def resolve_clock(name: str) -> CostClock:
    """Return the clock of a name.

    Args:
        name: `wall` (seconds as they pass), `samples`, a profile's name or JSON file (its seconds),
            or one of these profiles and `:joules` (its energy) or `:untold` (its seconds, which
            the policy has to learn from its steps).

    Raises:
        UnknownNameError: There is no such profile.
    """
    if name == WALL:
        return CostClock(name, None, CostWeights())
    if name == SAMPLES:  # the profile is never asked: samples are all that counts
        return CostClock(name, resolve_profile("cpu"), CostWeights(seconds=0.0, samples=1.0))
    profile, colon, unit = name.partition(":")
    if colon and unit not in ("seconds", "joules", UNTOLD):
        raise ConfigurationError(
            f"A profile counts seconds or joules, got {name!r}. "
            f"Write {profile}, {profile}:joules or {profile}:{UNTOLD}."
        )
    weights = CostWeights(seconds=0.0, joules=1.0) if unit == "joules" else CostWeights()
    try:
        return CostClock(name, resolve_profile(profile), weights, told=unit != UNTOLD)
    except UnknownNameError as error:
        from rlbatch.envs.profiles import profile_names

        raise UnknownNameError("profile", profile, [*profile_names(), WALL, SAMPLES]) from error
