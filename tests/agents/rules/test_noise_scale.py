import numpy as np
import pytest

from rlbatch.agents.rules.noise_scale import NoiseScale
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return NoiseScale()


class TestContractThatFollows(PolicyContract):
    def make_policy(self) -> Policy:
        return NoiseScale(warmup_chunks=0, follow=True)


@pytest.mark.parametrize(
    ("policy", "measured", "sizes"),
    [
        # trace / grad_sqr / theta^2 with theta = 0.5 and no memory: 4 x the noise scale
        (NoiseScale(0.5, 0.0, 0), [(64, 1), (100, 1), (25, 1)], [256, 400, 400]),
        (NoiseScale(0.5, 0.0, 0, True), [(64, 1), (100, 1), (25, 1)], [256, 400, 100]),
        (NoiseScale(0.5, 0.0, 0, True), [(100.1, 1), (0.01, 5)], [401, 1]),
        # decay 0.5: trace (8 + 64 / 2) / 1.5 = 26.67, after one chunk of 64
        (NoiseScale(0.5, 0.5, 0, True), [(64, 1), (8, 1)], [256, 107]),
        # numerator and denominator apart: (8 + 4) / (3 + 0.5) = 3.43 -> 14, not the mean of ratios
        (NoiseScale(0.5, 0.5, 0, True), [(8, 1), (8, 3)], [32, 14]),
        (NoiseScale(0.5, 0.0, 2), [(64, 1), (64, 1), (64, 1)], [64, 64, 256]),
        # a negative or missing |G|^2 says nothing
        (NoiseScale(0.5, 0.0, 0), [(64, -1), (64, NAN), (NAN, NAN), (64, 1)], [64, 64, 64, 256]),
        (NoiseScale(0.5, 0.0, 0, True), [(-5, 1), (0, 1)], [64, 64]),
    ],
)
def test_decision_sequences(
    policy: NoiseScale, measured: list[tuple[float, float]], sizes: list[int]
) -> None:
    state, size = policy.initial_state(), 64.0
    for (trace, grad_sqr), expected in zip(measured, sizes, strict=True):
        signals = simple_signals(batch_size=size, noise_trace=trace, grad_sqr=grad_sqr)
        decision, state = policy.decide(NOTHING, signals, state)
        size = float(np.round(size * 2.0**decision.log2_change))
        assert size == expected


def test_published_constants() -> None:
    policy = NoiseScale()
    assert (policy.theta, policy.decay, policy.follow) == (0.6, 0.9, False)


def test_reason_holds_the_noise_scale() -> None:
    policy = NoiseScale(0.5, 0.0, 0)
    decision, _ = policy.decide(NOTHING, simple_signals(), policy.initial_state())
    assert decision.reasons == ("noise-scale: x4 (noise scale 64)",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"theta": 0.0}, "theta must be above 0; got 0.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\)"),
        ({"warmup_chunks": -1}, "warmup_chunks must not be negative"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        NoiseScale(**settings)  # pyright: ignore[reportArgumentType]
