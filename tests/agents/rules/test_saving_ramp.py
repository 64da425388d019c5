"""The ramp that is only made where it saves time, against costs of a device by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlbatch.agents.rules.saving_ramp import SavingRamp
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.policy.state import pack_state, unpack_state
from rlbatch.signals.record import COST_CURVE_SIZES
from rlbatch.testing import random_signals, simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
PLANNED = 12_000.0


class TestSavingRamp(PolicyContract):
    def make_policy(self) -> Policy:
        return SavingRamp(early=0.05, first=0.1, second=0.6, saving=0.2)


def test_the_state_without_a_decision_is_that_of_one() -> None:
    policy, rng = SavingRamp(), np.random.default_rng(0)
    decided = remembered = policy.initial_state()
    for _ in range(20):
        signals = random_signals((), rng)
        _, decided = policy.decide(NOTHING, signals, decided)
        remembered = policy.next_state(signals, remembered)
        assert pack_state(remembered) == pack_state(decided)


def sizes(
    fixed: float,
    sample: float,
    *,
    told: bool,
    at: list[float],
    noise: tuple[float, float] = (1.0, 32.0),
) -> list[int]:
    """Sizes after chunks of 10 steps on a device whose step costs `fixed` + `sample` x B.

    The noise is (|G|^2, tr(Sigma)), by default of a scale of half of the user's 64.
    """
    policy = SavingRamp()
    state, size, chosen = policy.initial_state(), 64.0, list[int]()
    guess = 1.0 + COST_CURVE_SIZES / 64.0  # what is believed before anything was measured
    for seen in at:
        signals = simple_signals(
            batch_size=size,
            steps=10.0,
            total_samples=seen,
            grad_sqr=noise[0],
            noise_trace=noise[1],
            planned_samples=PLANNED,
            chunk_cost=10.0 * (fixed + sample * size),
            step_cost_known=1.0 if told else 0.5,
            step_cost_curve=np.log2(fixed + sample * COST_CURVE_SIZES if told else guess),
        )
        decision, state = policy.decide(NOTHING, signals, state)
        state = unpack_state(pack_state(state))  # a run that resumes here goes on alike
        size = round(size * 2.0 ** float(decision.log2_change))
        chosen.append(int(size))
    return chosen


RUN = [64.0, 5999.0, 6000.0, 7000.0, 8999.0, 9000.0, 12_000.0]


@pytest.mark.parametrize(
    ("fixed", "sample", "told", "expected"),
    [
        # A launch-bound device: a sample costs half, and again half.
        (1.0, 0.0, True, [64, 64, 128, 128, 128, 256, 256]),
        (1.0, 0.0, False, [64, 64, 128, 128, 128, 256, 256]),
        # A saturated one: nothing is saved. Who is not told tries once, and goes back.
        (0.0, 1.0, True, [64] * 7),
        (0.0, 1.0, False, [64, 64, 128, 64, 64, 64, 64]),
        # c(64) = 1 + 3: a sample costs 4, 3.5, 3.25 units: the first doubling saves 12.5%, the
        # second 7%.
        (1.0, 3.0 / 64.0, True, [64, 64, 128, 128, 128, 128, 128]),
        (1.0, 3.0 / 64.0, False, [64, 64, 128, 128, 128, 128, 128]),
    ],
)
def test_decision_sequences(fixed: float, sample: float, told: bool, expected: list[int]) -> None:
    assert sizes(fixed, sample, told=told, at=RUN) == expected


@pytest.mark.parametrize(
    ("noise", "early"),
    [
        ((1.0, 191.0), False),
        ((1.0, 192.0), True),  # the scale is three times the user's size
        ((-2.0, 64.0), True),  # |G|^2 drowns in noise
        ((np.nan, np.nan), False),  # nobody measured
    ],
)
def test_noise_allows_the_first_doubling_at_a_quarter(
    noise: tuple[float, float], early: bool
) -> None:
    at = [2999.0, 3000.0, 5999.0, 6000.0, 9000.0]

    found = sizes(1.0, 0.0, told=False, at=at, noise=noise)

    assert found == ([64, 128, 128, 128, 256] if early else [64, 64, 64, 128, 256])


def test_a_doubling_that_noise_allowed_once_is_kept() -> None:
    policy = SavingRamp()
    state, chosen = policy.initial_state(), list[float]()
    for size, grad_sqr in ((64.0, 1.0), (128.0, 1e6)):
        signals = simple_signals(
            batch_size=size,
            total_samples=4000.0,
            planned_samples=PLANNED,
            grad_sqr=grad_sqr,
            noise_trace=640.0,
            chunk_cost=10.0,
            step_cost_curve=np.zeros(17),
        )
        decision, state = policy.decide(NOTHING, signals, state)
        chosen.append(float(decision.log2_change))

    assert chosen == [1.0, 0.0]


def test_a_run_of_unknown_length_stays() -> None:
    policy = SavingRamp()
    decision, _ = policy.decide(NOTHING, simple_signals(), policy.initial_state())

    assert decision.log2_change == 0.0
    assert "not known" in decision.reasons[0]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="first must be below second"):
        SavingRamp(first=0.8)
    with pytest.raises(ConfigurationError, match="saving must be in"):
        SavingRamp(saving=1.0)
