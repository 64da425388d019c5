from __future__ import annotations

import numpy as np
import pytest

from rlbatch.agents.search.profile_fit import fit_profile
from rlbatch.agents.search.step_costs import StepCost
from rlbatch.envs.profiles import DeviceProfile, resolve_profile
from rlbatch.errors import ConfigurationError


def measured(profile: DeviceProfile, noise: float, joules: bool = False) -> list[StepCost]:
    rng = np.random.default_rng(0)
    costs = []
    for size in (2**k for k in range(13)):
        seconds = float(profile.step_seconds(size)) - profile.update_seconds
        rounds = seconds * np.exp(noise * rng.normal(size=7))
        energy = float(profile.step_joules(size)) if joules else None
        costs.append(StepCost(size, tuple(rounds), (profile.update_seconds,) * 7, energy))
    return costs


@pytest.mark.parametrize("name", ["cpu", "accelerator-512", "accelerator-4096"])
def test_the_profile_behind_exact_timings_is_found(name: str) -> None:
    truth = resolve_profile(name)
    truth = DeviceProfile(
        name,
        truth.launch_seconds,
        truth.sample_seconds,
        update_seconds=3e-4,
        sharpness=truth.sharpness,
        max_micro_batch_size=4096,
        idle_watts=30.0,
        busy_watts=90.0,
    )

    found = fit_profile(name, measured(truth, 0.0, joules=True), 4096)

    sizes = np.array([1.0, 30.0, 1000.0, 4096.0])
    assert found.profile.step_seconds(sizes) == pytest.approx(truth.step_seconds(sizes), rel=1e-3)
    assert found.profile.step_joules(sizes) == pytest.approx(truth.step_joules(sizes), rel=1e-2)
    assert found.energy_known
    assert found.error < 1e-3


def test_an_interval_holds_the_truth_of_noisy_timings() -> None:
    truth = DeviceProfile("noisy", 2e-3, 1e-5, update_seconds=1e-3, sharpness=2.0)

    found = fit_profile("noisy", measured(truth, 0.05), 4096)

    for field in ("launch_seconds", "sample_seconds"):
        low, high = found.intervals[field]
        assert low < high
        assert 0.97 * low <= getattr(truth, field) <= 1.03 * high
    curve = found.profile.step_seconds(found.sizes)
    assert (found.low <= curve * 1.001).all()
    assert (curve <= found.high * 1.001).all()
    assert not found.energy_known
    assert found.profile.max_micro_batch_size == 4096


def test_two_sizes_are_too_few() -> None:
    truth = DeviceProfile("few", 2e-3, 1e-5)

    with pytest.raises(ConfigurationError, match="at least 3 sizes"):
        fit_profile("few", measured(truth, 0.0)[:2], 8)
