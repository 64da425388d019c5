"""Device profiles: the shape of a step's cost, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.envs import profiles as profiles_module
from rlbatch.envs.profiles import (
    MEASURED,
    CostWeights,
    DeviceProfile,
    profile_names,
    resolve_profile,
    step_cost,
    step_cost_curve,
)
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.record import COST_CURVE_SIZES

profiles = st.builds(
    DeviceProfile,
    name=st.just("drawn"),
    launch_seconds=st.floats(1e-5, 1e-1),
    sample_seconds=st.floats(1e-8, 1e-2),
    update_seconds=st.floats(0, 1e-2),
    sharpness=st.floats(1, 8),
    max_micro_batch_size=st.just(10**15),
)


@given(profile=profiles)
def test_larger_batches_cost_more_a_step_and_less_a_sample(profile: DeviceProfile) -> None:
    seconds = profile.step_seconds(COST_CURVE_SIZES)
    assert (np.diff(seconds) >= 0).all()
    assert (np.diff(seconds / COST_CURVE_SIZES) <= 1e-18).all()


@given(profile=profiles)
def test_both_ends_are_launch_bound_and_compute_bound(profile: DeviceProfile) -> None:
    assert profile.step_seconds(1e-9) == pytest.approx(
        profile.launch_seconds + profile.update_seconds, rel=1e-3
    )
    assert profile.step_seconds(1e12) == pytest.approx(1e12 * profile.sample_seconds, rel=1e-2)


def test_beyond_the_memory_limit_accumulation_repeats_whole_passes() -> None:
    limited = DeviceProfile("limited", 1e-3, 1e-5, update_seconds=2e-3, max_micro_batch_size=64)
    one_pass = limited.step_seconds(64) - 2e-3
    assert limited.step_seconds(256) == pytest.approx(4 * one_pass + 2e-3)


def test_a_single_kind_of_cost_is_in_its_own_unit_and_a_mix_in_default_steps() -> None:
    profile = resolve_profile("cpu")
    assert step_cost(profile, CostWeights(), 64, 32) == pytest.approx(profile.step_seconds(64))
    assert step_cost(profile, CostWeights(0.0, 1.0, 0.0), 64, 32) == 64
    assert step_cost(profile, CostWeights(0.5, 0.5, 0.0), 32, 32) == pytest.approx(1.0)
    np.testing.assert_allclose(
        step_cost_curve(profile, CostWeights(), 32), np.log2(profile.step_seconds(COST_CURVE_SIZES))
    )


def test_a_profile_survives_json_and_an_unknown_key_is_refused() -> None:
    profile = resolve_profile("accelerator-512")
    assert DeviceProfile.from_json(profile.to_json()) == profile
    with pytest.raises(ConfigurationError, match="Not a device profile"):
        DeviceProfile.from_json('{"name": "x", "speed": 3}')


def test_wrong_values_and_names_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="launch_seconds of profile 'x' must be positive, got 0"
    ):
        DeviceProfile("x", 0.0, 1e-3)
    with pytest.raises(ConfigurationError, match="sum to 1"):
        CostWeights(0.5, 0.1, 0.1)
    with pytest.raises(UnknownNameError, match="Did you mean 'cpu'"):
        resolve_profile("cpuu")
    assert "accelerator-4096" in profile_names()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"3", b"\xff\x00", b'{"name": "x"}', b'{"a": 1}'),
        b'{"name": "x", "launch_seconds": "fast", "sample_seconds": 1.0}',
        b'{"name": "x", "launch_seconds": NaN, "sample_seconds": 1.0}',
    ],
)
def test_a_file_that_holds_no_profile_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        resolve_profile(str(path))
    path.write_text(resolve_profile("cpu").to_json())
    assert resolve_profile(str(path)) == resolve_profile("cpu")


def test_measured_profiles_have_the_name_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in MEASURED.glob("*.json"):
        assert resolve_profile(path.stem).name == path.stem
    measured = replace(resolve_profile("cpu"), name="some-card-mlp", sample_seconds=1e-6)
    (tmp_path / "some-card-mlp.json").write_text(measured.to_json())
    monkeypatch.setattr(profiles_module, "MEASURED", tmp_path)
    assert resolve_profile("some-card-mlp") == measured
    assert "some-card-mlp" in profile_names()
