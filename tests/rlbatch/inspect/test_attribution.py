"""Pushes add up, and their gradients are autograd's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlbatch.errors import ConfigurationError
from rlbatch.inspect import attribution
from rlbatch.inspect.attribution import TOLERANCE, attribute
from rlbatch.inspect.groups import PEOPLES, group_of
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.replay import recorded_policy
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from tests.rlbatch.inspect.made import EXAMPLE

GRID = (-1.0, 0.0, 1.0)


def random_network(seed: int, activation: str, scale: float = 0.4) -> Network:
    rng = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int) -> Layer:
        weight = rng.normal(0.0, scale, (outputs, inputs))
        return Layer(weight.astype(np.float32), rng.normal(0, 0.1, outputs).astype(np.float32))

    policy = (layer(OBSERVATION_SIZE, 16), layer(16, 16), layer(16, len(GRID)))
    return Network(policy, (layer(OBSERVATION_SIZE, 1),), activation)


def log_odds(policy: LearnedPolicy, seen: Tensor, chosen: int, other: int) -> Tensor:
    """Return ln(P(chosen) / P(other)), written anew in torch."""
    probabilities: list[Tensor] = []
    for net in policy.members:
        values = seen
        for place, layer in enumerate(net.policy):
            weight = torch.tensor(layer.weight, dtype=torch.float64)
            values = values @ weight.T + torch.tensor(layer.bias, dtype=torch.float64)
            if place < len(net.policy) - 1:
                values = values.tanh() if net.activation == "tanh" else values.relu()
        probabilities.append(values.softmax(-1))
    mean = torch.stack(probabilities).mean(0)
    return (mean[..., chosen] / mean[..., other]).log()


@pytest.fixture(params=["tanh", "relu"])
def policy(request: pytest.FixtureRequest) -> LearnedPolicy:
    return LearnedPolicy(tuple(random_network(seed, request.param) for seed in (1, 2)), GRID)


@pytest.fixture
def seen() -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, OBSERVATION_SIZE).astype(np.float32)


def test_pushes_add_up_to_the_difference_in_log_odds(
    policy: LearnedPolicy, seen: np.ndarray
) -> None:
    made = attribute(policy, seen)

    chosen, other = GRID.index(made.chosen), GRID.index(made.other)
    ends = torch.tensor(np.stack([np.zeros_like(seen), seen]), dtype=torch.float64)
    neutral, here = log_odds(policy, ends, chosen, other).tolist()
    assert made.log_odds == pytest.approx(here, abs=1e-9)
    assert made.neutral_log_odds == pytest.approx(neutral, abs=1e-9)
    assert sum(made.features.values()) == pytest.approx(here - neutral, abs=TOLERANCE)
    assert sum(made.groups().values()) == pytest.approx(sum(made.features.values()))


def test_gradients_are_autograds(policy: LearnedPolicy, seen: np.ndarray) -> None:
    inputs = np.stack([seen, 0.3 * seen, -seen]).astype(np.float64)
    given = torch.tensor(inputs, requires_grad=True)
    log_odds(policy, given, 2, 0).sum().backward()
    assert given.grad is not None

    values, gradient = attribution._log_odds(policy, inputs, 2, 0)

    np.testing.assert_allclose(values, log_odds(policy, given, 2, 0).detach().numpy(), atol=1e-9)
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-9)


def test_each_push_is_the_integral_of_its_gradient(policy: LearnedPolicy, seen: np.ndarray) -> None:
    made = attribute(policy, seen)
    chosen, other = GRID.index(made.chosen), GRID.index(made.other)
    path = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * torch.tensor(seen)
    path.requires_grad_(True)
    log_odds(policy, path, chosen, other).sum().backward()
    assert path.grad is not None
    slopes = path.grad.numpy() * seen

    expected = ((slopes[1:] + slopes[:-1]) / 2).mean(axis=0)

    np.testing.assert_allclose(list(made.features.values()), expected, atol=2 * TOLERANCE)


def test_a_linear_network_pushes_by_weight_times_feature(seen: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, OBSERVATION_SIZE)).astype(np.float32)
    layer = Layer(weight, np.zeros(3, dtype=np.float32))
    value = Layer(weight[:1], np.zeros(1, dtype=np.float32))
    linear = LearnedPolicy((Network((layer,), (value,)),), GRID)

    made = attribute(linear, seen)

    chosen, other = GRID.index(made.chosen), GRID.index(made.other)
    expected = (weight[chosen] - weight[other]).astype(np.float64) * seen
    np.testing.assert_allclose(list(made.features.values()), expected, atol=1e-5)


def test_from_another_baseline_it_adds_up_too(policy: LearnedPolicy, seen: np.ndarray) -> None:
    start = -0.5 * seen

    made = attribute(policy, seen, baseline=start)

    chosen, other = GRID.index(made.chosen), GRID.index(made.other)
    before = float(log_odds(policy, torch.tensor(start, dtype=torch.float64), chosen, other))
    assert sum(made.features.values()) == pytest.approx(made.log_odds - before, abs=TOLERANCE)


def test_the_recorded_decisions_of_the_shipped_policy_add_up() -> None:
    log = read_log(EXAMPLE)
    policy = recorded_policy(log.run)
    assert isinstance(policy, LearnedPolicy)
    for record in log.records:
        if record.observation is None or record.probabilities is None:
            continue
        made = attribute(policy, record.observation)
        odds = dict(zip(policy.action_grid, record.probabilities, strict=True))
        expected = np.log(odds[made.chosen] / odds[made.other])
        assert made.log_odds == pytest.approx(expected, abs=2e-3)  # recorded in single precision
        assert sum(made.features.values()) == pytest.approx(
            made.log_odds - made.neutral_log_odds, abs=TOLERANCE
        )


def test_stay_is_compared_with_the_runner_up(policy: LearnedPolicy, seen: np.ndarray) -> None:
    for seed in range(30):
        drawn = np.random.default_rng(seed).uniform(-1, 1, OBSERVATION_SIZE)
        made = attribute(policy, drawn)
        assert made.chosen != made.other
        assert 0.0 in (made.chosen, made.other)
        assert made.log_odds >= 0


@pytest.mark.parametrize("seen", [np.zeros(3), np.full(OBSERVATION_SIZE, np.nan)])
def test_another_observation_is_refused(policy: LearnedPolicy, seen: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="finite features"):
        attribute(policy, seen)


def test_every_feature_belongs_to_what_people_think_in() -> None:
    groups = {name: group_of(name) for name in OBSERVATION_NAMES}

    assert set(groups.values()) == set(PEOPLES)
    assert groups["noise_vs_size"] == "noise"
    assert groups["elasticity_x2"] == "cost"
    assert groups["room_up"] == "limits"
    assert groups["plan_left"] == "plan"
    assert groups["val_gap"] == "loss"
    assert group_of("a feature of a later version") in PEOPLES
