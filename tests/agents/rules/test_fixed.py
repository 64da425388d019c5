import numpy as np
import pytest

from rlbatch.agents.rules.fixed import Fixed
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import random_run, simple_signals
from rlbatch.testing.policy_contract import PolicyContract, play

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Fixed()


class TestContractOfASize(PolicyContract):
    def make_policy(self) -> Policy:
        return Fixed(48)


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"), [(None, 64, 64), (64, 64, 64), (256, 64, 256), (7, 64, 7)]
)
def test_goes_to_its_size_and_stays(size: int | None, batch_size: float, expected: float) -> None:
    decision, _ = Fixed(size).decide(NOTHING, simple_signals(batch_size=batch_size), ())
    assert batch_size * 2.0**decision.log2_change == pytest.approx(expected)


def test_staying_is_exactly_zero() -> None:
    run = random_run((5,), np.random.default_rng(0), 3)
    assert not any(np.any(decision.log2_change) for decision in play(Fixed(), run, (5,)))


def test_wants_no_gradient_noise() -> None:
    assert Fixed().needs_gradient_noise is False


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1; got 0"):
        Fixed(0)
