import numpy as np
import pytest

from rlbatch.agents.rules.divebatch import DiveBatch
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")
EPOCH = 1000.0


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return DiveBatch()


@pytest.mark.parametrize(
    ("delta", "chunks", "sizes"),
    [
        # (samples since the start, steps, tr(Sigma), |G|^2) with 1,000 samples an epoch.
        # n D = (1 + 399) / (1 + 0.399) = 285.9, once the epoch is over.
        (0.5, [(600, 6, 399, 1), (1000, 4, 399, 1), (1600, 6, 9, 1)], [100, 143, 143]),
        # Weighted by samples: tr 0.75 * 100 + 0.25 * 300 = 150; n D = 151 / 1.15 = 131.3
        (1.0, [(750, 3, 100, 1), (1000, 1, 300, 1)], [100, 131]),
        # The second epoch forgets the first: n D = (1 + 49) / (1 + 0.049) = 47.66 and shrinks.
        (1.0, [(1000, 10, 150, 1), (2000, 8, 49, 1)], [131, 48]),
        # Noise alone: n D = n. No noise: all gradients alike, n D = 1.
        (0.25, [(1000, 10, 5, -2)], [250]),
        (1.0, [(1000, 10, 0, 5)], [1]),
        # What was not measured has no weight; an epoch without any measurement changes nothing.
        (1.0, [(500, 5, NAN, NAN), (1000, 5, 150, 1)], [100, 131]),
        (1.0, [(1000, 10, NAN, NAN)], [100]),
    ],
)
def test_decision_sequences(
    delta: float, chunks: list[tuple[float, float, float, float]], sizes: list[float]
) -> None:
    policy, size = DiveBatch(delta), 100.0
    state = policy.initial_state()
    found = []
    for seen, steps, trace, grad_sqr in chunks:
        signals = simple_signals(
            batch_size=size,
            steps=steps,
            total_samples=seen,
            dataset_size=EPOCH,
            noise_trace=trace,
            grad_sqr=grad_sqr,
        )
        decision, state = policy.decide(NOTHING, signals, state)
        size = float(np.round(size * 2.0**decision.log2_change))
        found.append(size)
    assert found == sizes


def test_equals_the_sums_over_single_gradients() -> None:
    """Of 400 drawn gradients, D from its definition and n D from the exact two moments."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(0.1, 1.0, size=(400, 30))
    n = len(gradients)
    mean = gradients.mean(axis=0)
    noise_trace = np.square(gradients - mean).sum() / (n - 1)
    grad_sqr = np.square(mean).sum() - noise_trace / n  # unbiased, as the estimator's
    exact = n * np.square(gradients).sum() / np.square(gradients.sum(axis=0)).sum()
    signals = simple_signals(
        batch_size=100.0,
        total_samples=400.0,
        dataset_size=400.0,
        noise_trace=noise_trace,
        grad_sqr=grad_sqr,
    )
    decision, _ = DiveBatch(delta=1.0).decide(NOTHING, signals, DiveBatch().initial_state())
    assert 100.0 * 2.0**decision.log2_change == pytest.approx(exact, rel=0.02)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="delta must be above 0; got 0"):
        DiveBatch(delta=0)
