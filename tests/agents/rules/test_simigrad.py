import numpy as np
import pytest

from rlbatch.agents.rules.simigrad import SimiGrad
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return SimiGrad()


def next_size(batch_size: float, cosine: float, steps: float, **settings: float) -> float:
    signals = simple_signals(batch_size=batch_size, gradient_cosine=cosine, steps=steps)
    decision, _ = SimiGrad(**settings).decide(NOTHING, signals, ())
    return float(batch_size * 2.0**decision.log2_change)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9, 10, 19, 30, 100, 1234])
@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.2, 0.49, 0.5, 0.51, 0.9, 1.0])
def test_one_step_is_the_published_rule(batch_size: int, cosine: float) -> None:
    expected = batch_size
    if cosine < 0.5:
        expected = max(1, batch_size + 1, int(1.1 * batch_size))
    elif cosine > 0.5 and batch_size > 1:
        expected = max(1, min(batch_size - 1, int(0.9 * batch_size)))
    found = next_size(batch_size, cosine, 1, target=0.5, max_log2_change=10)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cosine", "steps", "expected"),
    [
        (0.0, 3, 133.1),  # far away: three times 10 %
        (1.0, 3, 72.9),
        (0.0, 100, 200.0),  # at most a doubling
        (1.0, 100, 50.0),
        (0.4, 100, 150.0),  # odds 2/3 against 1: the target is reached at 1.5 times the size
        (0.6, 100, 100 / 1.5),
        (0.5, 100, 100.0),
    ],
)
def test_a_chunk_of_many_steps(cosine: float, steps: float, expected: float) -> None:
    assert next_size(100, cosine, steps) == pytest.approx(expected, rel=1e-3)


def test_the_stop_is_where_the_per_step_rule_settles() -> None:
    """Against the rule run step by step, with the cosine that theory expects at each size."""
    noise_scale, target, size = 200.0, 0.3, 100.0
    cosine_at_start = 1 / (1 + 2 * noise_scale / size)
    per_step = size
    for _ in range(60):
        cosine = 1 / (1 + 2 * noise_scale / per_step)
        per_step = (
            max(per_step + 1, int(1.1 * per_step)) if cosine < target else int(0.9 * per_step)
        )
    at_once = next_size(size, cosine_at_start, 60, target=target, max_log2_change=10)
    assert at_once == pytest.approx(2 * noise_scale * target / (1 - target))
    assert 0.85 < at_once / per_step < 1.15


def test_stays_without_a_measurement() -> None:
    assert next_size(64, float("nan"), 10) == 64


@pytest.mark.parametrize("settings", [{"target": 0.0}, {"target": 1.0}, {"max_log2_change": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))} must be"):
        SimiGrad(**settings)
