"""Device profiles: seconds, joules and bytes of one optimizer step as a function of the batch size.

A profile makes time exact and repeatable on a noisy machine: the dynamics of a run stay real, its
clock is computed.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.record import COST_CURVE_SIZES, Array


@dataclass(frozen=True)
class DeviceProfile:
    """Cost of one optimizer step on one device.

    `step_seconds(B) = k * ((launch_seconds^s + (b * sample_seconds)^s)^(1/s)) + update_seconds`
    with `k = ceil(B / max micro-batch)` accumulation steps of `b = B / k` samples. The smooth
    maximum turns from launch-bound to compute-bound at the knee `launch_seconds / sample_seconds`;
    a large `sharpness` makes the turn abrupt.

    Attributes:
        name: How the command line calls it.
        launch_seconds: Seconds of a forward and backward pass of one sample.
        sample_seconds: Seconds that one more sample costs on a saturated device.
        update_seconds: Seconds of the optimizer's update, once a step.
        sharpness: Exponent of the smooth maximum, at least 1 (1: plain sum).
        max_micro_batch_size: Largest micro-batch that fits into memory.
        idle_watts: Power drawn whatever the load.
        busy_watts: Additional power while samples are computed.
        world_size: Ranks that share a step.
        sync_seconds: Seconds of the gradient exchange between ranks, once a step.
    """

    name: str
    launch_seconds: float
    sample_seconds: float
    update_seconds: float = 0.0
    sharpness: float = 2.0
    max_micro_batch_size: int = 65536
    idle_watts: float = 50.0
    busy_watts: float = 150.0
    world_size: int = 1
    sync_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is not a cost."""
        for field in ("launch_seconds", "sample_seconds"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(
                    f"{field} of profile {self.name!r} must be positive, got {value}."
                )
        if self.sharpness < 1 or self.max_micro_batch_size < 1 or self.world_size < 1:
            raise ConfigurationError(
                f"Profile {self.name!r}: sharpness, max_micro_batch_size and world_size must be at "
                f"least 1, got {self.sharpness}, {self.max_micro_batch_size}, {self.world_size}."
            )

    def step_seconds(self, batch_size: float | Array) -> Array:
        """Seconds of one optimizer step at a global batch size (any shape)."""
        local = np.asarray(batch_size, dtype=np.float64) / self.world_size
        accumulation_steps = np.ceil(local / self.max_micro_batch_size)
        micro = local / accumulation_steps
        s = self.sharpness
        one_pass = (self.launch_seconds**s + (micro * self.sample_seconds) ** s) ** (1 / s)
        sync = self.sync_seconds if self.world_size > 1 else 0.0
        return accumulation_steps * one_pass + self.update_seconds + sync

    def step_joules(self, batch_size: float | Array) -> Array:
        """Joules of one optimizer step: idle power all along, busy power while computing."""
        busy = np.asarray(batch_size, dtype=np.float64) * self.sample_seconds
        return (
            self.idle_watts * self.world_size * self.step_seconds(batch_size)
            + self.busy_watts * busy
        )

    def to_json(self) -> str:
        """Return the profile as JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """Return the profile from `to_json`'s text; an unknown key is an error."""
        try:
            return cls(**json.loads(text))
        except ConfigurationError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"Not a device profile: {error}. Expected one JSON object with the fields of "
                "rlbatch.envs.profiles.DeviceProfile."
            ) from error


# Knees at the sizes that matter for the tables: a CPU that is saturated by 32 samples, and two
# accelerator-like devices whose throughput rises up to about 512 and 4,096 samples.
_BUILT_IN = (
    DeviceProfile("cpu", launch_seconds=1e-3, sample_seconds=1e-3 / 16, sharpness=1.5),
    DeviceProfile("accelerator-512", launch_seconds=2e-3, sample_seconds=2e-3 / 256, sharpness=2.0),
    DeviceProfile(
        "accelerator-4096", launch_seconds=2e-3, sample_seconds=2e-3 / 2048, sharpness=2.0
    ),
)


MEASURED = Path(__file__).with_name("device_profiles")
"""Folder of profiles that were measured on real devices, one file each, named after the card."""


def profile_names() -> list[str]:
    """Names of the built-in profiles, and of the measured ones."""
    return sorted([profile.name for profile in _BUILT_IN] + list(_measured()))


def _measured() -> dict[str, Path]:
    return {path.stem: path for path in MEASURED.glob("*.json")}


def resolve_profile(spec: str) -> DeviceProfile:
    """Return a profile by name, or from a JSON file's path."""
    for profile in _BUILT_IN:
        if profile.name == spec:
            return profile
    path = _measured().get(spec) or Path(spec)
    if path.suffix == ".json" and path.is_file():
        try:
            return DeviceProfile.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{path}: {error}") from error
    raise UnknownNameError("profile", spec, [*profile_names(), "wall"])


@dataclass(frozen=True)
class CostWeights:
    """What a run spends, as a mix. The weights sum to one.

    With a mix, each part is counted in units of one step at the base batch size, so that seconds,
    samples and joules can be added. With a single part the cost is in that part's own unit
    (seconds, samples or joules).
    """

    seconds: float = 1.0
    samples: float = 0.0
    joules: float = 0.0

    def __post_init__(self) -> None:
        """Refuse weights that are no mix."""
        weights = (self.seconds, self.samples, self.joules)
        if min(weights) < 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-9):
            raise ConfigurationError(
                f"Cost weights must be non-negative and sum to 1, got {weights}."
            )


def step_cost(
    profile: DeviceProfile, weights: CostWeights, batch_size: float | Array, base_batch_size: float
) -> Array:
    """Cost of one optimizer step, in the objective's unit (see `CostWeights`)."""
    size = np.asarray(batch_size, dtype=np.float64)
    parts = (
        (weights.seconds, profile.step_seconds),
        (weights.samples, lambda b: np.asarray(b, dtype=np.float64)),
        (weights.joules, profile.step_joules),
    )
    single = sum(weight > 0 for weight, _ in parts) == 1
    cost = np.zeros_like(size)
    for weight, part in parts:
        if weight > 0:
            cost = cost + weight * part(size) / (1.0 if single else part(base_batch_size))
    return cost


def step_cost_curve(profile: DeviceProfile, weights: CostWeights, base_batch_size: float) -> Array:
    """log2 of the step cost at `COST_CURVE_SIZES`: the form in which signals carry it."""
    return np.log2(step_cost(profile, weights, COST_CURVE_SIZES, base_batch_size))
