from typing import Any

import numpy as np
import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.fallback import Fallback
from rlbatch.signals.record import Signals
from rlbatch.testing import ScriptedPolicy, random_policy, random_signals
from rlbatch.testing.policy_contract import PolicyContract

LOW, HIGH = (-0.5,) * OBSERVATION_SIZE, (0.5,) * OBSERVATION_SIZE


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        inner = random_policy(np.random.default_rng(0), sample=True)
        return Fallback(inner, ScriptedPolicy((0.25, -0.5, 0.0, 1.0)), LOW, HIGH)


def observe(*outside: float) -> np.ndarray:
    observation = np.zeros(OBSERVATION_SIZE, np.float32)
    observation[: len(outside)] = outside
    return observation


def ask(policy: Policy, observation: np.ndarray) -> Decision:
    shape = observation.shape[:-1]
    signals = random_signals(shape, np.random.default_rng(0))
    return policy.decide(observation, signals, policy.initial_state(shape))[0]


@pytest.mark.parametrize(
    ("observation", "strange"),
    [
        (observe(), False),
        (observe(0.5, -0.5, 0.59, -0.59), False),  # within the margin
        (observe(0.9, 0.5, -0.5), False),  # one feature only
        (observe(0.9, -0.61), True),
        (observe(np.nan), True),
        (observe(np.inf), True),
    ],
)
def test_strange_observations_go_to_the_fallback(observation: np.ndarray, strange: bool) -> None:
    policy = Fallback(ScriptedPolicy((2.0,)), ScriptedPolicy((-1.0,)), LOW, HIGH, patience=1)
    assert ask(policy, observation).log2_change == (-1.0 if strange else 2.0)
    assert ask(policy, observation).fell_back is strange
    both = np.stack([observation, observe()])
    np.testing.assert_array_equal(ask(policy, both).log2_change, [-1.0 if strange else 2.0, 2.0])
    np.testing.assert_array_equal(ask(policy, both).fell_back, [strange, False])


# Observations (. ordinary, x strange, ! not finite); who decides: Policy, Fallback, or nobody.
@pytest.mark.parametrize(
    ("seen", "decides"),
    [
        ("....", "PPPP"),
        (".x.xx.", "PnPnnP"),  # never three in a row
        ("xxx..", "nnFFF"),
        ("xxxx..x...", "nnFFFFFFFP"),  # handed over, and back after three ordinary ones
        ("!..", "FPP"),  # not finite: at once, for this time
        ("!!!...", "FFFFFP"),
    ],
)
def test_three_in_a_row_change_who_decides(seen: str, decides: str) -> None:
    policy = Fallback(ScriptedPolicy((2.0,) * 10), ScriptedPolicy((-1.0,) * 10), LOW, HIGH)
    shown = {".": observe(), "x": observe(1, 1), "!": observe(np.nan)}
    changes = {"P": 2.0, "F": -1.0, "n": 0.0}
    signals, state = random_signals((), np.random.default_rng(0)), policy.initial_state()
    many, states = random_signals((2,), np.random.default_rng(0)), policy.initial_state((2,))
    for kind, who in zip(seen, decides, strict=True):
        decision, state = policy.decide(shown[kind], signals, state)
        both, states = policy.decide(np.stack([shown["."], shown[kind]]), many, states)

        assert decision.log2_change == changes[who]
        assert decision.fell_back is (who != "P")
        np.testing.assert_array_equal(both.log2_change, [2.0, changes[who]])


def test_says_why() -> None:
    policy = Fallback(ScriptedPolicy((2.0,)), ScriptedPolicy((-1.0,)), LOW, HIGH, patience=1)
    assert ask(policy, observe(1, 0.8, -0.7, -0.9)).reasons == (
        "script: x4",
        "script: /2",
        "fallback: /2 (outside of training: size_vs_base is 1.00, in training -0.50 to 0.50, "
        "room_down is -0.90, in training -0.50 to 0.50, size is 0.80, in training -0.50 to 0.50 "
        "and 1 more)",
    )
    assert ask(policy, observe(np.nan)).reasons[-1] == "fallback: /2 (observation not finite)"
    assert ask(policy, observe()).reasons == ("script: x4",)


def test_one_strange_observation_holds_and_says_why() -> None:
    policy = Fallback(ScriptedPolicy((2.0,)), ScriptedPolicy((-1.0,)), LOW, HIGH)

    assert ask(policy, observe(1, -1)).reasons == (
        "script: x4",
        "fallback: stay (outside of training: size_vs_base is 1.00, in training -0.50 to 0.50, "
        "size is -1.00, in training -0.50 to 0.50)",
    )


def test_a_decision_that_is_not_finite_is_replaced() -> None:
    policy = Fallback(ScriptedPolicy((np.nan,)), ScriptedPolicy((1.0,)))
    decision = ask(policy, observe())
    assert decision.log2_change == 1.0
    assert decision.reasons[-1] == "fallback: x2 (decision not finite)"


def test_the_fallback_goes_on_deciding_meanwhile() -> None:
    policy = Fallback(
        *(ScriptedPolicy((1.0, 1.0, 1.0)), ScriptedPolicy((-1.0, -2.0, -3.0)), LOW, HIGH),
        patience=1,
    )
    signals, state = random_signals((), np.random.default_rng(0)), policy.initial_state()
    changes: list[object] = []
    for observation in (observe(), observe(), observe(1, 1, 1)):
        decision, state = policy.decide(observation, signals, state)
        changes.append(decision.log2_change)
    assert changes == [1.0, 1.0, -3.0]


class Counting:
    """Counts the chunks that it saw, and asks for as many doublings where it has to decide."""

    needs_gradient_noise = False
    decisions = 0

    def initial_state(self, shape: tuple[int, ...] = ()) -> int:
        return 0

    def next_state(self, signals: Signals, state: int) -> int:
        return state + 1

    def decide(self, observation: Observation, signals: Signals, state: int) -> Any:
        self.decisions += 1
        return Decision(np.full(observation.shape[:-1], state + 1.0)[()]), state + 1


def test_a_fallback_that_can_is_asked_for_a_decision_only_where_one_is_needed() -> None:
    counting = Counting()
    policy = Fallback(ScriptedPolicy((0.0,) * 6), counting, LOW, HIGH, patience=2)
    signals, state = random_signals((), np.random.default_rng(0)), policy.initial_state()
    changes: list[object] = []
    for seen in (observe(), observe(np.nan), observe(), observe(1, 1), observe(1, 1), observe()):
        decision, state = policy.decide(seen, signals, state)
        changes.append(decision.log2_change)
    assert changes == [0.0, 2.0, 0.0, 0.0, 5.0, 6.0]
    assert counting.decisions == 3
    assert np.asarray(ask(policy, np.stack([observe(), observe(np.nan)])).log2_change)[1] == 1.0


def test_without_ranges_only_finite_values_are_checked() -> None:
    policy = Fallback(ScriptedPolicy((2.0,)), ScriptedPolicy((-1.0,)))
    assert ask(policy, observe(1, 1, 1, 1, 1)).log2_change == 2.0
    assert ask(policy, observe(np.nan)).log2_change == -1.0


def test_gradient_noise_is_wanted_when_either_wants_it() -> None:
    learned, script = random_policy(np.random.default_rng(0)), ScriptedPolicy(())
    assert Fallback(script, learned).needs_gradient_noise is True
    assert Fallback(learned, script).needs_gradient_noise is True
    assert Fallback(script, script).needs_gradient_noise is False


def test_impossible_settings_are_refused() -> None:
    script = ScriptedPolicy(())
    with pytest.raises(ConfigurationError, match=f"got 2 and {OBSERVATION_SIZE}"):
        Fallback(script, script, low=(0.0, 0.0), high=HIGH)
    with pytest.raises(ConfigurationError, match=r"patience >= 1; got 0\.1, 0 and 3"):
        Fallback(script, script, min_features=0)
    with pytest.raises(ConfigurationError, match=r"patience >= 1; got 0\.1, 2 and 0"):
        Fallback(script, script, patience=0)
