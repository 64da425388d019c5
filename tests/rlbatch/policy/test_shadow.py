import numpy as np

from rlbatch.policy.base import Policy
from rlbatch.policy.shadow import Shadow
from rlbatch.testing import ScriptedPolicy, random_policy, random_run
from rlbatch.testing.policy_contract import PolicyContract, play


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Shadow(random_policy(np.random.default_rng(0), sample=True))


def test_stays_and_tells_what_it_would_have_done() -> None:
    run = random_run((), np.random.default_rng(0), 3)
    decisions = play(Shadow(ScriptedPolicy((1.0, 0.0, -2.0))), run, ())
    assert [decision.log2_change for decision in decisions] == [0.0, 0.0, 0.0]
    assert [decision.reasons for decision in decisions] == [
        ("script: x2", "shadow: stay instead of x2"),
        ("script: stay",),
        ("script: /4", "shadow: stay instead of /4"),
    ]


def test_the_inner_policy_runs_as_in_earnest() -> None:
    inner = random_policy(np.random.default_rng(0), sample=True)
    run = random_run((4,), np.random.default_rng(0), 6)
    in_earnest, in_shadow = play(inner, run, (4,)), play(Shadow(inner), run, (4,))
    for real, shadow in zip(in_earnest, in_shadow, strict=True):
        assert not np.any(shadow.log2_change)
        np.testing.assert_array_equal(real.probabilities, shadow.probabilities)
        np.testing.assert_array_equal(real.value, shadow.value)


def test_gradient_noise_is_wanted_as_the_inner_policy_wants_it() -> None:
    assert Shadow(random_policy(np.random.default_rng(0))).needs_gradient_noise is True
    assert Shadow(ScriptedPolicy(())).needs_gradient_noise is False
