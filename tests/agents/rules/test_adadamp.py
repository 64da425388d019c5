import numpy as np
import pytest

from rlbatch.agents.rules.adadamp import AdaDamp, PadaDamp, RadaDamp
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestContractOfAdaDamp(PolicyContract):
    def make_policy(self) -> Policy:
        return AdaDamp()


class TestContractOfPadaDamp(PolicyContract):
    def make_policy(self) -> Policy:
        return PadaDamp(rate=0.1)


class TestContractOfRadaDamp(PolicyContract):
    def make_policy(self) -> Policy:
        return RadaDamp()


def sizes(policy: Policy, chunks: list[dict[str, float]]) -> list[float]:
    state, size, asked = policy.initial_state(), 64.0, list[float]()
    for changes in chunks:
        decision, state = policy.decide(NOTHING, simple_signals(batch_size=size, **changes), state)
        size = float(np.round(size * 2.0**decision.log2_change, 6))
        asked.append(size)
    return asked


@pytest.mark.parametrize(
    ("lowest", "losses", "expected"),
    [
        (0.0, [2.0, 1.0, 0.3, 4.0], [64, 128, 427, 32]),  # 64 x 2 / 0.3 = 426.7
        (1.0, [3.0, 2.0, 1.5], [64, 128, 256]),
        (0.0, [NAN, 2.0, NAN, 1.0], [64, 64, 64, 128]),
        (1.0, [2.0, 0.9, 1.0], [64, 64, 64]),  # below the lowest possible loss: no statement
    ],
)
def test_adadamp_by_hand(lowest: float, losses: list[float], expected: list[float]) -> None:
    assert sizes(AdaDamp(lowest), [{"train_loss": loss} for loss in losses]) == expected


def test_padadamp_by_hand() -> None:
    chunks = [{"total_steps": steps} for steps in (0.0, 1.0, 10.0, 35.0)]
    assert sizes(PadaDamp(rate=0.1), chunks) == [64, 65, 65, 68]
    assert sizes(PadaDamp(), [{"total_steps": 100_000.0}]) == [164]


def test_radadamp_by_hand() -> None:
    """No memory (rho = 0), and the first chunk alone is the start (wait = 10)."""
    chunks = [
        {"total_steps": 10.0, "train_loss": 2.0, "grad_sqr": 3.0, "noise_trace": 64.0},
        # loss at 1/2, |g|^2 at (1 + 64/64) / (3 + 1) = 1/2: 64 / 0.5
        {"total_steps": 20.0, "train_loss": 1.0, "grad_sqr": 1.0, "noise_trace": 64.0},
        # loss at 1/4, |g|^2 at (0.5 + 64/128) / 4 = 1/4: 64 / 0.25
        {"total_steps": 30.0, "train_loss": 0.5, "grad_sqr": 0.5, "noise_trace": 64.0},
        # worse than at the start: never below B0
        {"total_steps": 40.0, "train_loss": 20.0, "grad_sqr": 9.0, "noise_trace": 64.0},
    ]
    assert sizes(RadaDamp(rho=0.0, wait=10), chunks) == [64, 128, 256, 64]


def test_radadamp_waits_and_takes_its_start_from_the_wait() -> None:
    exact = {"grad_sqr": 2.0, "noise_trace": 0.0}
    chunks = [
        {"total_steps": 10.0, "train_loss": 4.0, **exact},
        {"total_steps": 20.0, "train_loss": 2.0, **exact},
        {"total_steps": 30.0, "train_loss": 1.5, **exact},
    ]
    # Start: mean loss 3. Second chunk: 64 / (0.5 (2/3 + 1)) = 76.8; third: 64 / 0.75 = 85.3.
    assert sizes(RadaDamp(rho=0.0, wait=20), chunks) == [64, 77, 86]
    # Start: the first chunk alone, loss 4.
    assert sizes(RadaDamp(rho=0.0, wait=10), chunks) == [64, 86, 94]
    # Start: all three, mean loss 2.5, and nothing is done before.
    assert sizes(RadaDamp(rho=0.0, wait=30), chunks) == [64, 64, 80]


def test_radadamp_forgets_by_rho_every_twenty_steps() -> None:
    chunks = [
        {"total_steps": 20.0, "steps": 20.0, "train_loss": 1.0},
        {"total_steps": 60.0, "steps": 40.0, "train_loss": 0.25},
    ]
    # weights: 0.04 * 0.8 for the first, 0.96 for the second; the gradient stays as it was
    loss = (0.04 * 0.8 * 1.0 + 0.96 * 0.25) / (0.04 * 0.8 + 0.96)
    expected = np.ceil(64 / (0.5 * (loss + 1.0)))
    assert sizes(RadaDamp(rho=0.2, wait=20), chunks) == [64, expected]


def test_radadamp_stays_without_gradients() -> None:
    chunks = [{"total_steps": 200.0, "noise_trace": NAN}, {"total_steps": 210.0, "grad_sqr": NAN}]
    assert sizes(RadaDamp(), chunks) == [64, 64]


def test_only_radadamp_needs_gradients() -> None:
    assert [rule.needs_gradient_noise for rule in (AdaDamp, PadaDamp, RadaDamp)] == [
        False,
        False,
        True,
    ]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rate must not be negative; got -1"):
        PadaDamp(-1)
    with pytest.raises(ConfigurationError, match=r"rho must be in \[0, 1\); got 1"):
        RadaDamp(rho=1)
    with pytest.raises(ConfigurationError, match="wait must not be negative; got -5"):
        RadaDamp(wait=-5)
