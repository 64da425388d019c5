from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlbatch.policy.base import Policy
from rlbatch.policy.bounds import Bounded
from rlbatch.testing import ScriptedPolicy, random_policy, random_signals
from rlbatch.testing.policy_contract import PolicyContract


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Bounded(random_policy(np.random.default_rng(0)))


def ask(policy: Policy, batch_size: Any, low: float, high: float):
    shape = np.shape(batch_size)
    signals = random_signals(shape, np.random.default_rng(0))
    context = replace(signals.context, min_batch_size=low, max_batch_size=high)
    signals = replace(signals, context=context, batch_size=batch_size)
    observation = np.zeros((*shape, 1), np.float32)
    return policy.decide(observation, signals, policy.initial_state(shape))[0]


@pytest.mark.parametrize(
    ("change", "batch_size", "expected"),
    [
        (2.0, 64.0, 256.0),
        (3.0, 64.0, 256.0),  # the maximum
        (-5.0, 64.0, 8.0),  # the minimum
        (0.0, 1024.0, 256.0),  # outside already: brought back
        (0.0, 4.0, 8.0),
    ],
)
def test_where_a_request_ends(change: float, batch_size: float, expected: float) -> None:
    decision = ask(Bounded(ScriptedPolicy((change,))), batch_size, 8, 256)
    assert batch_size * 2.0**decision.log2_change == pytest.approx(expected)


def test_a_request_inside_is_passed_on_exactly() -> None:
    decision = ask(Bounded(ScriptedPolicy((0.1,))), 100.0, 8, 256)
    assert decision.log2_change == 0.1
    assert decision.reasons == ("script: x1.07",)


def test_reason_names_the_bounds() -> None:
    decision = ask(Bounded(ScriptedPolicy((2.0,))), 128.0, 8, 256)
    assert decision.reasons == ("script: x4", "bounds: x2 instead of x4")


def test_every_run_has_its_own_limits() -> None:
    policy = Bounded(ScriptedPolicy((1.0,)))
    decision = ask(policy, np.array([64.0, 64.0, 64.0]), 8, np.array([64.0, 96.0, 1e9]))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(decision.log2_change, [0, np.log2(1.5), 1])
