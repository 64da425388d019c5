import numpy as np
import pytest

from rlbatch.agents.rules.cabs import Cabs
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Cabs()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"noise_trace": 2000.0, "train_loss": 2.0}, 100),  # 0.1 x 2000 / 2
        ({"noise_trace": 2009.0, "train_loss": 2.0}, 100),  # 100.45 rounds down
        ({"noise_trace": 2000.0, "learning_rate_factor": 4.0, "schedule_factor": 0.5}, 400),
        ({"noise_trace": 0.1}, 1),
        ({"noise_trace": 0.0}, 64),
        ({"noise_trace": -3.0}, 64),
        ({"train_loss": -1.0}, 64),
        ({"train_loss": NAN}, 64),
        ({"noise_trace": NAN}, 64),
    ],
)
def test_hand_computed(changes: dict[str, float], expected: float) -> None:
    policy = Cabs()
    decision, _ = policy.decide(NOTHING, simple_signals(**changes), policy.initial_state())
    assert 64 * 2.0**decision.log2_change == pytest.approx(expected)


def test_a_chunk_of_n_steps_counts_as_n_updates() -> None:
    policy = Cabs(decay=0.5)
    state = policy.initial_state()
    for steps, trace in ((1.0, 1000.0), (3.0, 3000.0)):
        signals = simple_signals(steps=steps, noise_trace=trace)
        decision, state = policy.decide(NOTHING, signals, state)
    # as if 3000 had come three times: weights 1/2, 1/4, 1/8 against 1/16 for the 1000
    expected = 0.1 * (3000 * 0.875 + 1000 * 0.0625) / 0.9375
    assert 64 * 2.0**decision.log2_change == pytest.approx(round(expected))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="scale must be above 0; got 0"):
        Cabs(scale=0)
    with pytest.raises(ConfigurationError, match=r"decay must be in \[0, 1\); got 1\.5"):
        Cabs(decay=1.5)
