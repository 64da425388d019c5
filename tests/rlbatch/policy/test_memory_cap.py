from dataclasses import replace

import numpy as np
import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy
from rlbatch.policy.memory_cap import MemoryCap
from rlbatch.testing import ScriptedPolicy, random_policy, random_signals
from rlbatch.testing.policy_contract import PolicyContract


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return MemoryCap(random_policy(np.random.default_rng(0)), 100)


@pytest.mark.parametrize(
    ("change", "batch_size", "expected"),
    [(1, 32, 64), (2, 32, 96), (0, 96, 96), (0, 200, 96), (-3, 200, 25), (-3, 32, 4)],
)
def test_where_a_request_ends(change: float, batch_size: float, expected: float) -> None:
    policy = MemoryCap(ScriptedPolicy((change,)), 96)
    signals = replace(random_signals((), np.random.default_rng(0)), batch_size=batch_size)
    decision, _ = policy.decide(np.zeros(1, np.float32), signals, policy.initial_state())
    assert batch_size * 2.0**decision.log2_change == pytest.approx(expected)
    limited = expected != batch_size * 2.0**change
    assert (decision.reasons[-1].startswith("memory cap: ")) == limited


def test_impossible_caps_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1; got 0"):
        MemoryCap(ScriptedPolicy(()), 0)
