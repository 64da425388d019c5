from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.envs.profiles import resolve_profile, step_cost
from rlbatch.errors import ConfigurationError, UnknownNameError


@given(
    steps=st.integers(0, 60),
    batch_size=st.integers(1, 50),
    name=st.sampled_from(["cpu", "samples", "cpu:joules", "accelerator-512"]),
)
def test_the_cost_of_a_run_is_the_sum_of_its_steps(steps: int, batch_size: int, name: str) -> None:
    clock = resolve_clock(name)
    left, expected = 50, 0.0
    for _ in range(steps):  # epochs of 50 samples, the last batch of each is what is left
        size = min(batch_size, left)
        left = 50 if left == size else left - size
        assert clock.profile is not None
        expected += float(step_cost(clock.profile, clock.weights, size, 8))

    assert float(clock.run_cost(steps, batch_size, 50, 8)) == pytest.approx(expected)


def test_the_samples_clock_counts_samples() -> None:
    assert resolve_clock("samples").run_cost(np.array([7, 8]), 8, 50, 8).tolist() == [50, 58]


def test_joules_are_those_of_the_profile() -> None:
    cost = resolve_clock("cpu:joules").run_cost(1, 8, 64, 8)

    assert float(cost) == pytest.approx(float(resolve_profile("cpu").step_joules(8)))


def test_the_wall_clock_cannot_be_computed() -> None:
    with pytest.raises(ConfigurationError, match="wall clock"):
        resolve_clock("wall").run_cost(1, 8, 50, 8)


def test_an_unknown_clock_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'accelerator-512'.*samples.*wall"):
        resolve_clock("accelerator-51")
    with pytest.raises(ConfigurationError, match="cpu:joules"):
        resolve_clock("cpu:watts")


def test_costs_that_are_not_told_are_the_profiles_all_the_same() -> None:
    told, untold = resolve_clock("accelerator-512"), resolve_clock("accelerator-512:untold")

    assert (told.told, untold.told) == (True, False)
    assert untold.name == "accelerator-512:untold"
    assert untold.profile == told.profile
    assert float(untold.run_cost(7, 8, 64, 8)) == float(told.run_cost(7, 8, 64, 8))
