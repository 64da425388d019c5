import numpy as np
import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy
from rlbatch.policy.rate_limit import RateLimited
from rlbatch.testing import ScriptedPolicy, random_policy, random_run
from rlbatch.testing.policy_contract import PolicyContract, play


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return RateLimited(random_policy(np.random.default_rng(0)), 0.75)


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        (1.0, (2, -3, 0.5, 0, -1), (1, -1, 0.5, 0, -1)),
        (0.25, (2, -0.1, -0.3), (0.25, -0.1, -0.25)),
        (5.0, (2, -3), (2, -3)),
    ],
)
def test_decision_sequences(
    limit: float, asked: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    for shape in ((), (3,)):
        run = random_run(shape, np.random.default_rng(0), len(asked))
        decisions = play(RateLimited(ScriptedPolicy(asked), limit), run, shape)
        for decision, change in zip(decisions, expected, strict=True):
            np.testing.assert_array_equal(decision.log2_change, np.full(shape, change))


def test_reason_names_the_rate_limit() -> None:
    run = random_run((), np.random.default_rng(0), 1)
    (decision,) = play(RateLimited(ScriptedPolicy((-3.0,))), run, ())
    assert decision.reasons == ("script: /8", "rate limit: /2 instead of /8")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_limits_are_refused(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="must be above 0; got"):
        RateLimited(ScriptedPolicy(()), limit)
