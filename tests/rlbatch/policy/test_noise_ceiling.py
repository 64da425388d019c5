"""The ceiling of a learned policy: no size far above the noise scale, the user's always allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from rlbatch.testing import simple_signals

GRID = (-2.0, 0.0, 3.0)


def policy(wanted: float, ceiling: float | None) -> LearnedPolicy:
    """A policy that always wants the same change."""
    bias = np.where(np.asarray(GRID) == wanted, 9.0, 0.0).astype(np.float32)
    actor = (Layer(np.zeros((len(GRID), OBSERVATION_SIZE), np.float32), bias),)
    critic = (Layer(np.zeros((1, OBSERVATION_SIZE), np.float32), np.zeros(1, np.float32)),)
    return LearnedPolicy((Network(actor, critic, "relu"),), GRID, noise_ceiling=ceiling)


def observed(log2_noise_over_size: float, known: float) -> np.ndarray:
    seen = np.zeros(OBSERVATION_SIZE, np.float32)
    seen[OBSERVATION_NAMES.index("noise_vs_size")] = log2_noise_over_size / 10
    seen[OBSERVATION_NAMES.index("noise_known")] = known
    return seen


@pytest.mark.parametrize(
    ("wanted", "ceiling", "noise", "known", "base", "expected"),
    [
        (3.0, None, -1.0, 1.0, 64.0, 3.0),
        (3.0, 2.0, -1.0, 0.0, 64.0, 3.0),  # nothing is known of the noise
        (3.0, 2.0, 1.0, 0.5, 64.0, 3.0),  # four times twice the size: eight times
        (3.0, 2.0, -1.0, 0.5, 64.0, 1.0),  # four times half of the size: twice
        (3.0, 2.0, -4.0, 0.5, 64.0, 0.0),  # the user's size, 64, is always allowed
        (0.0, 2.0, -4.0, 0.5, 16.0, -2.0),  # 64 is above the user's 16 and the noise
        (0.0, 2.0, -2.4, 0.5, 16.0, 0.0),  # by less than half of a doubling
        (-2.0, 2.0, -4.0, 0.5, 64.0, -2.0),  # who goes down is not held
    ],
)
def test_sizes_stay_within_so_many_noise_scales(
    wanted: float, ceiling: float | None, noise: float, known: float, base: float, expected: float
) -> None:
    decider = policy(wanted, ceiling)
    signals = simple_signals(base_batch_size=base, planned_samples=1e6)

    made, _ = decider.decide(observed(noise, known), signals, decider.initial_state())

    assert made.log2_change == expected
    assert any("noise ceiling" in reason for reason in made.reasons) == (expected != wanted)


@pytest.mark.parametrize(
    ("run", "bound"),
    [
        ({}, False),  # a constant rate for nobody knows how long: what is too large is taken back
        ({"planned_samples": 1e6}, True),
        ({"schedule_factor": 0.5}, True),
    ],
)
def test_only_a_plan_or_a_schedule_bounds_the_size(run: dict[str, float], bound: bool) -> None:
    decider = policy(3.0, 2.0)

    made, _ = decider.decide(observed(-2.0, 0.5), simple_signals(**run), decider.initial_state())

    assert made.log2_change == (0.0 if bound else 3.0)


def test_the_ceiling_is_kept_in_the_file(tmp_path: Path) -> None:
    made = policy(3.0, 2.5)
    save_policy(tmp_path / "a.safetensors", made, made.card)

    assert load_policy(tmp_path / "a.safetensors").noise_ceiling == 2.5
    with pytest.raises(ConfigurationError, match="noise_ceiling must be finite"):
        replace(made, noise_ceiling=np.inf)
