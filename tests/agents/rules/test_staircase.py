"""The rules that take multiples of the user's batch size at shares of the planned samples."""

import numpy as np
import pytest

from rlbatch.agents.rules.late_switch import LateSwitch
from rlbatch.agents.rules.quarter_half_whole import QuarterHalfWhole
from rlbatch.agents.rules.ramp import Ramp
from rlbatch.agents.rules.thirds import Thirds
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.policy.state import pack_state, unpack_state
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
PLANNED = 12_000.0


class TestRamp(PolicyContract):
    def make_policy(self) -> Policy:
        return Ramp(first=0.1, second=0.6, factor=3)


class TestThirds(PolicyContract):
    def make_policy(self) -> Policy:
        return Thirds()


class TestLateSwitch(PolicyContract):
    def make_policy(self) -> Policy:
        return LateSwitch()


class TestQuarterHalfWhole(PolicyContract):
    def make_policy(self) -> Policy:
        return QuarterHalfWhole()


@pytest.mark.parametrize(
    ("policy", "samples", "sizes"),
    [
        (Ramp(), [64, 5999, 6000, 8999, 9000, 12_000], [64, 64, 128, 128, 256, 256]),
        (Ramp(0.25, 0.5, 4), [2999, 3000, 6000], [64, 256, 1024]),
        (Ramp(factor=0.5), [6000, 9000], [32, 16]),
        (Thirds(), [64, 3999, 4000, 7999, 8000, 12_000], [32, 32, 64, 64, 96, 96]),
        (LateSwitch(), [64, 8999, 9000, 12_000], [64, 64, 256, 256]),
        (LateSwitch(share=0.5, factor=8), [5999, 6000], [64, 512]),
        (QuarterHalfWhole(), [64, 359, 360, 1199, 1200, 9000], [16, 16, 32, 32, 64, 64]),
        # First asked late: the place in the run is all that counts.
        (Ramp(), [9500], [256]),
    ],
)
def test_decision_sequences(policy: Policy, samples: list[float], sizes: list[float]) -> None:
    state, size = policy.initial_state(), 64.0
    for seen, expected in zip(samples, sizes, strict=True):
        signals = simple_signals(batch_size=size, total_samples=seen, planned_samples=PLANNED)
        decision, state = policy.decide(NOTHING, signals, state)
        state = unpack_state(pack_state(state))  # a run that resumes here goes on alike
        size *= 2.0**decision.log2_change
        assert size == pytest.approx(expected)


def test_multiples_are_of_the_size_the_rate_was_chosen_for() -> None:
    signals = simple_signals(batch_size=512.0, total_samples=7000.0, planned_samples=PLANNED)
    decision, _ = Ramp().decide(NOTHING, signals, ())
    assert decision.log2_change == pytest.approx(-2.0)  # 512 -> 2 x 64
    assert decision.reasons == ("ramp: /4 (58% of the planned samples)",)


@pytest.mark.parametrize("policy", [Ramp(), Thirds(), LateSwitch(), QuarterHalfWhole()])
def test_stays_where_the_length_is_not_known(policy: Policy) -> None:
    signals = simple_signals(batch_size=200.0, total_samples=1e6)
    decision, _ = policy.decide(NOTHING, signals, policy.initial_state())
    assert decision.log2_change == 0.0
    assert "length of the run not known" in decision.reasons[0]


def test_runs_side_by_side_each_have_their_place() -> None:
    signals = simple_signals(
        batch_size=np.array([64.0, 64.0, 256.0]),
        total_samples=np.array([100.0, 7000.0, 7000.0]),
        planned_samples=np.array([PLANNED, PLANNED, np.nan]),
    )
    decision, _ = Ramp().decide(NOTHING, signals, Ramp().initial_state((3,)))
    np.testing.assert_allclose(decision.log2_change, [0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        (Ramp, {"first": 0.8}, "first must be below second; got"),
        (Ramp, {"second": 1.0}, r"Ramp.second must be between 0 and 1; got 1\.0"),
        (Ramp, {"factor": 0.0}, "factor must be above 0"),
        (LateSwitch, {"share": 0.0}, "share must be between 0 and 1"),
        (LateSwitch, {"factor": float("inf")}, "factor must be above 0"),
        (QuarterHalfWhole, {"half": 0.2}, "half must be below whole"),
    ],
)
def test_impossible_settings_are_refused(
    rule: type, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        rule(**settings)
