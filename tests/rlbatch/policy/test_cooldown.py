import numpy as np
import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy
from rlbatch.policy.cooldown import Cooldown
from rlbatch.testing import ScriptedPolicy, random_policy, random_run
from rlbatch.testing.policy_contract import PolicyContract, play


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Cooldown(random_policy(np.random.default_rng(0)), chunks=2)


@pytest.mark.parametrize(
    ("chunks", "asked", "expected"),
    [
        (0, (1, 1, 1), (1, 1, 1)),
        (1, (1, 1, 1, 1), (1, 0, 1, 0)),
        (2, (1, -1, -1, -1, 0, 1), (1, 0, 0, -1, 0, 0)),
        (2, (0, 0, 1, 2, 0, 3, 0), (0, 0, 1, 0, 0, 3, 0)),
        (3, (0.5, 0, 0, 0, 0.5), (0.5, 0, 0, 0, 0.5)),
        (1, (1e-9, 1, 1), (1e-9, 1, 0)),  # a rounding error is no change
    ],
)
def test_decision_sequences(
    chunks: int, asked: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    run = random_run((), np.random.default_rng(0), len(asked))
    decisions = play(Cooldown(ScriptedPolicy(asked), chunks), run, ())
    assert tuple(decision.log2_change for decision in decisions) == expected


def test_each_run_waits_for_itself() -> None:
    class Odd(ScriptedPolicy):
        """Starts its runs at different places of the script."""

        def initial_state(self, shape: tuple[int, ...] = ()) -> object:
            return np.arange(shape[0])

    run = random_run((3,), np.random.default_rng(0), 4)
    decisions = play(Cooldown(Odd((1, 0, 1, 1, 0, 1)), 1), run, (3,))
    changes = np.stack([np.asarray(decision.log2_change) for decision in decisions], axis=1)
    np.testing.assert_array_equal(changes, [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])


def test_reason_names_the_cooldown() -> None:
    run = random_run((), np.random.default_rng(0), 2)
    _, decision = play(Cooldown(ScriptedPolicy((1.0, 2.0))), run, ())
    assert decision.reasons == ("script: x4", "cooldown: stay instead of x4")


def test_negative_waiting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must not be negative; got -1"):
        Cooldown(ScriptedPolicy(()), -1)
