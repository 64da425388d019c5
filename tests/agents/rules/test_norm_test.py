import numpy as np
import pytest

from rlbatch.agents.rules.norm_test import NormTest
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return NormTest()


@pytest.mark.parametrize(
    ("theta", "batch_size", "trace", "grad_sqr", "expected"),
    [
        # batch gradient squared: 1 + 64 / 64 = 2; V / B = 1 <= 0.81 * 2: passed
        (0.9, 64, 64.0, 1.0, 64),
        # 1 + 6400 / 64 = 101; V / B = 100 > 0.81 * 101 = 81.81; 6400 / 81.81 = 78.2 -> 79
        (0.9, 64, 6400.0, 1.0, 79),
        # pure noise: at most 1 / theta^2 = 4 times
        (0.5, 64, 6400.0, 0.0, 256),
        # theta^2 (4 + 2) = 1.5 < V / B = 2; 128 / 1.5 = 85.3 -> 86
        (0.5, 64, 128.0, 4.0, 86),
        (0.5, 64, 128.0, 400.0, 64),  # never shrinks
        (0.5, 64, 128.0, -5.0, 64),  # a batch gradient of negative norm: no statement
        (0.5, 64, NAN, 1.0, 64),
        (0.5, 64, 128.0, NAN, 64),
    ],
)
def test_hand_computed(
    theta: float, batch_size: float, trace: float, grad_sqr: float, expected: float
) -> None:
    signals = simple_signals(batch_size=batch_size, noise_trace=trace, grad_sqr=grad_sqr)
    decision, _ = NormTest(theta).decide(NOTHING, signals, ())
    assert batch_size * 2.0**decision.log2_change == pytest.approx(expected)


def test_equals_the_definition_on_real_gradients() -> None:
    """V and |g|^2 from per-sample gradients, against the unbiased estimates that signals hold."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((32, 50)) + 0.02
    mean = gradients.mean(axis=0)
    variance = np.square(gradients - mean).sum() / 31  # V
    norm = float(mean @ mean)
    expected = np.ceil(variance / (0.9**2 * norm)) if variance / 32 > 0.9**2 * norm else 32
    assert expected > 32
    signals = simple_signals(batch_size=32, noise_trace=variance, grad_sqr=norm - variance / 32)
    decision, _ = NormTest().decide(NOTHING, signals, ())
    assert 32 * 2.0**decision.log2_change == pytest.approx(expected)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"theta must be above 0; got -0\.9"):
        NormTest(-0.9)
