import numpy as np
import pytest

from rlbatch.agents.rules.geometric import Geometric
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Geometric()


class TestContractBySteps(PolicyContract):
    def make_policy(self) -> Policy:
        return Geometric(factor=3, every_steps=50)


@pytest.mark.parametrize(
    ("policy", "epochs", "sizes"),
    [
        (Geometric(), [0.1, 4.99, 5, 9.9, 10, 20], [64, 64, 128, 128, 256, 1024]),
        (Geometric(factor=5, every_epochs=1), [0.5, 1.5, 2.5], [64, 320, 1600]),
        (Geometric(factor=0.5, every_epochs=2), [1, 3], [64, 32]),
        (Geometric(), [30], [64 * 2**6]),  # first asked late: the whole growth is due
    ],
)
def test_decision_sequences(policy: Geometric, epochs: list[float], sizes: list[float]) -> None:
    state, size = policy.initial_state(), 64.0
    for epoch, expected in zip(epochs, sizes, strict=True):
        signals = simple_signals(batch_size=size, total_samples=epoch * 6400.0)
        decision, state = policy.decide(NOTHING, signals, state)
        size *= 2.0**decision.log2_change
        assert size == pytest.approx(expected)


def test_counts_steps_when_told_to() -> None:
    policy = Geometric(every_steps=100)
    signals = simple_signals(total_steps=250.0, total_samples=1e9)
    decision, _ = policy.decide(NOTHING, signals, policy.initial_state())
    assert decision.log2_change == pytest.approx(2.0)


def test_a_size_that_was_held_back_is_asked_for_again() -> None:
    policy = Geometric(every_epochs=1)
    state = policy.initial_state()
    for _ in range(2):  # someone else keeps the size at 64
        signals = simple_signals(total_samples=3 * 6400.0)
        decision, state = policy.decide(NOTHING, signals, state)
        assert decision.log2_change == pytest.approx(3.0)


@pytest.mark.parametrize("settings", [{"factor": 0.0}, {"every_epochs": 0.0}, {"every_steps": 0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))} must"):
        Geometric(**settings)  # pyright: ignore[reportArgumentType]
