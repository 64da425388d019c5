from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.base import Decision, Policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from rlbatch.testing import random_policy, random_signals, simple_signals
from rlbatch.testing.policy_contract import PolicyContract

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
ZERO = np.zeros(OBSERVATION_SIZE, np.float32)


def constant_policy(*logits: float, value: float = 0.0, **settings: object) -> LearnedPolicy:
    """A policy whose logits do not depend on the observation."""
    weight = np.zeros((len(logits), OBSERVATION_SIZE), np.float32)
    network = Network(
        policy=(Layer(weight, np.array(logits, np.float32)),),
        value=(Layer(weight[:1], np.array([value], np.float32)),),
    )
    return LearnedPolicy((network,), **settings)  # pyright: ignore[reportArgumentType]


def probabilities(decision: Decision) -> NDArray[np.float32]:
    assert decision.probabilities is not None
    return decision.probabilities


def signals_at(batch_size: float, low: float = 1, high: float = 65536):
    signals = random_signals((), np.random.default_rng(0))
    context = replace(signals.context, min_batch_size=low, max_batch_size=high)
    return replace(signals, batch_size=batch_size, context=context)


def test_takes_the_most_probable_action_and_says_so() -> None:
    policy = constant_policy(0.0, 0.0, 0.0, np.log(16.0), 0.0, value=-1.5)
    decision, _ = policy.decide(ZERO, signals_at(64), policy.initial_state())
    assert decision.log2_change == 1.0
    assert decision.value == -1.5
    assert decision.reasons == ("learned: x2 (p=0.80)",)
    np.testing.assert_allclose(probabilities(decision), [0.05, 0.05, 0.05, 0.8, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "allowed"),
    [
        (8, (0.0, 1.0, 2.0)),
        (16, (-1.0, 0.0, 1.0, 2.0)),
        (64, (-2.0, -1.0, 0.0)),
        (100, (-2.0, -1.0, 0.0)),  # out of bounds already: only what leads back, or nothing
        (4, (0.0, 1.0, 2.0)),
    ],
)
def test_mask_leaves_what_stays_in_bounds(batch_size: float, allowed: tuple[float, ...]) -> None:
    policy = constant_policy(0.0, 0.0, 0.0, 0.0, 0.0, masked=True)
    signals = signals_at(batch_size, 8, 64)
    decision, _ = policy.decide(ZERO, signals, policy.initial_state())
    expected = [1 / len(allowed) if action in allowed else 0.0 for action in GRID]
    np.testing.assert_allclose(probabilities(decision), expected, rtol=1e-6)


def observed(goodput_step: float, noise_known: float) -> NDArray[np.float32]:
    seen = ZERO.copy()
    seen[OBSERVATION_NAMES.index("goodput_step")] = goodput_step / 6  # doublings
    seen[OBSERVATION_NAMES.index("noise_known")] = noise_known
    return seen


@pytest.mark.parametrize(
    ("chosen", "goodput_step", "known", "change"),
    [
        (-2.0, 0.0, 0.5, -1.0),  # half the most productive size at least
        (-1.0, 0.0, 0.5, -1.0),
        (-2.0, -3.0, 0.5, -2.0),  # which lies far below
        (-2.0, 3.0, 0.5, 1.0),  # far above: one doubling at a time
        (2.0, 5.0, 0.5, 2.0),  # never less than was chosen
        (-2.0, 3.0, 0.0, -2.0),  # nobody knows the noise
    ],
)
def test_the_floor_lies_so_far_below_the_most_productive_size(
    chosen: float, goodput_step: float, known: float, change: float
) -> None:
    logits = [9.0 * (action == chosen) for action in GRID]
    policy = constant_policy(*logits, goodput_slack=1.0)
    seen = observed(goodput_step, known)
    decision, _ = policy.decide(seen, signals_at(64), policy.initial_state())
    assert decision.log2_change == pytest.approx(change)
    assert [reason.startswith("goodput floor") for reason in decision.reasons[1:]] == [True] * (
        change != chosen
    )
    both = np.stack([seen, seen])
    many, _ = policy.decide(
        both, random_signals((2,), np.random.default_rng(0)), (*policy.initial_state((2,)),)
    )
    np.testing.assert_allclose(many.log2_change, [change, change])
    free = constant_policy(*logits)
    assert free.decide(seen, signals_at(64), free.initial_state())[0].log2_change == chosen


def test_a_floor_that_lifts_by_rounding_alone_is_no_reason() -> None:
    policy = constant_policy(*(9.0 * (action == 0.0) for action in GRID), goodput_slack=1.0)
    step = np.nextafter(np.float32(1 / 6), np.float32(1))  # 1 doubling is 1/6, and a little more
    decision, _ = policy.decide(observed(6 * step, 1.0), signals_at(64), policy.initial_state())

    assert 0.0 < decision.log2_change < 1e-6
    assert len(decision.reasons) == 1


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        # Planned are 100 steps of 64; after 10 of them at the base size everything is as planned.
        ({}, 0.0),
        ({"batch_size": 16.0}, 2.0),
        # Ten steps of 256: 3,840 samples are left for 90 steps.
        ({"batch_size": 256.0, "total_samples": 2560.0}, np.log2(3840 / 90 / 256)),
        ({"total_steps": 100.0}, 2.0),  # as many as planned
        ({"total_samples": 6400.0}, 2.0),  # nothing is left to be kept
        ({"planned_samples": np.nan}, 2.0),
        ({"coupling_exponent": 0.5}, 2.0),  # 15 steps to a quarter of them last at up to 384
        ({"coupling_exponent": 0.5, "total_samples": 4480.0}, 1.0),
        ({"coupling_exponent": 1.0, "total_samples": 5440.0}, 0.0),
        ({"target_loss": np.nan}, 2.0),  # a run of so many samples, whatever its steps
    ],
)
def test_the_steps_of_a_schedule_are_kept(changes: dict[str, float], change: float) -> None:
    policy = constant_policy(0.0, 0.0, 0.0, 0.0, 9.0, keeps_steps=True)
    given = simple_signals(**{"planned_samples": 6400.0, **changes})
    decision, _ = policy.decide(ZERO, given, policy.initial_state())
    assert decision.log2_change == pytest.approx(change)
    assert (len(decision.reasons) == 2) == (change != 2.0)
    free = replace(policy, keeps_steps=False)
    assert free.decide(ZERO, given, free.initial_state())[0].log2_change == 2.0


def test_mask_never_takes_everything() -> None:
    policy = constant_policy(9.0, 9.0, -9.0, 9.0, 9.0, masked=True)
    decision, _ = policy.decide(ZERO, signals_at(32, 32, 32), policy.initial_state())
    assert decision.log2_change == 0.0


def test_mask_rounds_in_favour_of_the_exact_bound() -> None:
    policy = constant_policy(0.0, 0.0, 0.0, 0.0, 9.0, masked=True)
    decision, _ = policy.decide(ZERO, signals_at(100, 1, 400), policy.initial_state())
    assert decision.log2_change == 2.0


def test_an_observation_that_is_not_finite_means_stay() -> None:
    policy = constant_policy(9.0, 0.0, 0.0, 0.0, 0.0)
    odd = ZERO.copy()
    odd[3] = np.nan
    both = np.stack([ZERO, odd])
    decision, _ = policy.decide(both, random_signals((2,), np.random.default_rng(0)), (0, 0))
    np.testing.assert_array_equal(decision.log2_change, [-2.0, 0.0])
    np.testing.assert_array_equal(probabilities(decision)[1], [0, 0, 1, 0, 0])


def test_ensemble_averages_probabilities_not_logits() -> None:
    first = constant_policy(np.log(8.0), 0.0, 0.0, value=1.0, action_grid=(-1, 0, 1))
    second = constant_policy(0.0, 0.0, np.log(8.0), value=3.0, action_grid=(-1, 0, 1))
    both = replace(first, members=first.members + second.members)
    decision, _ = both.decide(ZERO, signals_at(64), both.initial_state())
    np.testing.assert_allclose(probabilities(decision), [0.45, 0.1, 0.45], rtol=1e-6)
    assert decision.value == 2.0


def test_sampled_frequencies_match_the_probabilities() -> None:
    policy = constant_policy(0.0, np.log(2.0), -99.0, np.log(3.0), 0.0)
    policy = replace(policy, sample=True, seed=1)
    runs = 20_000
    signals = random_signals((runs,), np.random.default_rng(0))
    observation = np.zeros((runs, OBSERVATION_SIZE), np.float32)
    decision, _ = policy.decide(observation, signals, policy.initial_state((runs,)))
    counts = [(np.asarray(decision.log2_change) == action).mean() for action in GRID]
    np.testing.assert_allclose(counts, [1 / 7, 2 / 7, 0, 3 / 7, 1 / 7], atol=0.015)
    assert counts[2] == 0


def test_sampling_is_replayed_by_the_state_alone() -> None:
    policy = random_policy(np.random.default_rng(0), sample=True, seed=4)
    signals = signals_at(64)

    def walk(state: object, steps: int) -> tuple[list[float], object]:
        changes: list[float] = []
        for _ in range(steps):
            decision, state = policy.decide(ZERO, signals, state)
            changes.append(float(decision.log2_change))
        return changes, state

    whole, _ = walk(policy.initial_state(), 40)
    first, middle = walk(policy.initial_state(), 15)
    rest, _ = walk(middle, 25)
    assert whole == first + rest
    assert len(set(whole)) > 1


def test_wrong_settings_are_named() -> None:
    policy = constant_policy(0.0, 0.0, 0.0, 0.0, 0.0)
    for settings, words in (
        ({"action_grid": (-1, 1, 2)}, "must ascend and hold 0"),
        ({"action_grid": (1, 0, -1)}, "must ascend and hold 0"),
        ({"action_grid": (-1, 0, 1)}, "give 3 numbers; its layer sizes are"),
        ({"members": ()}, "at least one network"),
        ({"seed": -1}, "not be negative; got -1"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            replace(policy, **settings)


def test_wrong_observation_is_named() -> None:
    policy = constant_policy(0.0, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ConfigurationError, match=r"got shape \(7,\)"):
        policy.decide(np.zeros(7, np.float32), signals_at(64), policy.initial_state())


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_equals_the_stable_baselines3_policy_it_came_from(activation: str) -> None:
    import gymnasium
    import torch
    from stable_baselines3.common.policies import ActorCriticPolicy

    policy = ActorCriticPolicy(
        gymnasium.spaces.Box(-1, 1, (OBSERVATION_SIZE,), np.float32),
        gymnasium.spaces.Discrete(5),
        lambda _: 1e-3,
        net_arch={"pi": [32, 16], "vf": [64]},
        activation_fn={"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation],
    )
    with torch.no_grad():  # the initial policy is nearly uniform
        policy.get_parameter("action_net.weight").mul_(100.0)
    ours = LearnedPolicy((Network.from_sb3(policy.state_dict(), activation),))
    rng = np.random.default_rng(1)
    observation = rng.uniform(-1, 1, (2000, OBSERVATION_SIZE)).astype(np.float32)
    signals = random_signals((2000,), rng)
    decision, _ = ours.decide(observation, signals, ours.initial_state((2000,)))
    actions, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(decision.log2_change, np.asarray(GRID)[actions])
    with torch.no_grad():
        tensor = torch.from_numpy(observation)
        logits = policy.action_net(policy.mlp_extractor.forward_actor(tensor))
        expected = torch.softmax(logits, dim=-1).numpy()
        value = policy.predict_values(tensor)[:, 0]
    np.testing.assert_allclose(probabilities(decision), expected, atol=2e-6)
    assert decision.value is not None
    np.testing.assert_allclose(decision.value, value.numpy(), atol=1e-5)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return random_policy(np.random.default_rng(0))


class TestContractOfASampledMaskedEnsemble(PolicyContract):
    def make_policy(self) -> Policy:
        rng = np.random.default_rng(0)
        return random_policy(
            rng, members=3, masked=True, sample=True, seed=9, activations=("relu", "tanh")
        )


def test_networks_of_one_shape_decide_together_as_each_alone() -> None:
    policy = random_policy(np.random.default_rng(5), members=3)
    rng = np.random.default_rng(1)
    for _ in range(20):
        seen = rng.uniform(-1, 1, OBSERVATION_SIZE).astype(np.float32)
        signals = random_signals((), rng)
        together, _ = policy.decide(seen, signals, policy.initial_state())
        alone = [
            LearnedPolicy((member,), policy.action_grid).decide(
                seen, signals, policy.initial_state()
            )[0]
            for member in policy.members
        ]
        mean = np.mean([probabilities(decision) for decision in alone], axis=0)
        np.testing.assert_allclose(probabilities(together), mean, rtol=1e-5)
        values = [decision.value for decision in alone]
        assert together.value == pytest.approx(np.mean(np.asarray(values)), rel=1e-5, abs=1e-6)


def test_networks_of_several_shapes_decide_too() -> None:
    rng = np.random.default_rng(0)
    small, large = (random_policy(rng, hidden) for hidden in ((8,), (16, 16)))
    policy = LearnedPolicy((*small.members, *large.members), small.action_grid)
    seen = rng.uniform(-1, 1, OBSERVATION_SIZE).astype(np.float32)
    signals = random_signals((), rng)
    made = [p.decide(seen, signals, p.initial_state())[0] for p in (policy, small, large)]

    mean = np.mean([probabilities(decision) for decision in made[1:]], axis=0)
    np.testing.assert_allclose(probabilities(made[0]), mean, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_without_values_the_same_is_decided(shape: tuple[int, ...]) -> None:
    policy = random_policy(np.random.default_rng(7), members=2)
    rng = np.random.default_rng(2)
    seen = rng.uniform(-1, 1, (*shape, OBSERVATION_SIZE)).astype(np.float32)
    signals = random_signals(shape, rng)
    whole, _ = policy.decide(seen, signals, policy.initial_state(shape))
    bare, _ = replace(policy, values=False).decide(seen, signals, policy.initial_state(shape))

    assert whole.value is not None
    assert bare.value is None
    np.testing.assert_array_equal(bare.log2_change, whole.log2_change)
    np.testing.assert_array_equal(probabilities(bare), probabilities(whole))
