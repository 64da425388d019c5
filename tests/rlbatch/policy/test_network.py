import numpy as np
import pytest
import torch
from torch import nn

from rlbatch.errors import ConfigurationError
from rlbatch.policy.network import ACTIVATIONS, Layer, Network, softmax
from rlbatch.testing import random_policy


@pytest.mark.parametrize(("name", "module"), [("tanh", nn.Tanh), ("relu", nn.ReLU)])
def test_forward_equals_torch(name: str, module: type[nn.Module]) -> None:
    torch_net = nn.Sequential(
        nn.Linear(6, 16), module(), nn.Linear(16, 8), module(), nn.Linear(8, 3)
    )
    layers = tuple(
        Layer(layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in torch_net
        if isinstance(layer, nn.Linear)
    )
    inputs = np.random.default_rng(0).standard_normal((4, 5, 6), dtype=np.float32)
    with torch.no_grad():
        expected = torch_net(torch.from_numpy(inputs)).numpy()
    network = Network(layers, layers[:1], name)
    np.testing.assert_allclose(network.forward("policy", inputs), expected, rtol=1e-5, atol=1e-6)
    first = inputs @ layers[0].weight.T + layers[0].bias
    np.testing.assert_allclose(network.forward("value", inputs), first, rtol=1e-5, atol=1e-6)


def test_softmax_equals_torch_and_keeps_masked_entries_at_zero() -> None:
    logits = np.array([[1.0, -np.inf, 300.0, 2.0]], dtype=np.float32)
    expected = torch.softmax(torch.from_numpy(logits), -1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-6)
    assert softmax(logits)[0, 1] == 0.0


def test_weights_cannot_be_changed_from_outside() -> None:
    weight, bias = np.ones((1, 2), np.float32), np.zeros(1, np.float32)
    network = Network(policy=(Layer(weight, bias),), value=(Layer(weight, bias),))
    weight[:] = 5.0
    assert network.policy[0].weight.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="read-only"):
        network.policy[0].weight[0, 0] = 3.0


@pytest.mark.parametrize(
    ("weight", "bias", "words"),
    [
        (np.ones(3), np.ones(3), r"got \(3,\) and \(3,\)"),
        (np.ones((2, 3)), np.ones(3), r"got \(2, 3\) and \(3,\)"),
        (np.ones((0, 3)), np.ones(0), r"got \(0, 3\)"),
        (np.full((2, 3), np.nan), np.ones(2), "not finite"),
        (np.ones((2, 3)), np.array([0.0, np.inf]), "not finite"),
    ],
)
def test_impossible_layers_are_refused(weight: np.ndarray, bias: np.ndarray, words: str) -> None:
    good = Layer(np.ones((1, 3), np.float32), np.ones(1, np.float32))
    with pytest.raises(ConfigurationError, match=words):
        Network(policy=(Layer(weight, bias),), value=(good,))


def test_layers_that_do_not_fit_are_refused() -> None:
    first = Layer(np.ones((4, 3), np.float32), np.ones(4, np.float32))
    second = Layer(np.ones((1, 5), np.float32), np.ones(1, np.float32))
    with pytest.raises(ConfigurationError, match="one gives 4 numbers, the next takes 5"):
        Network(policy=(first, second), value=(first,))
    with pytest.raises(ConfigurationError, match="at least one layer"):
        Network(policy=(), value=(first,))


def test_sizes_start_with_the_inputs() -> None:
    member = random_policy(np.random.default_rng(0), hidden=(16, 8)).members[0]
    assert member.sizes("policy")[1:] == (16, 8, 5)
    assert member.sizes("value")[1:] == (16, 8, 1)


def test_foreign_parameters_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"action_net\.weight' is missing"):
        Network.from_sb3({"features.weight": np.ones((2, 2))})


def test_an_unknown_activation_is_refused() -> None:
    (member,) = random_policy(np.random.default_rng(0)).members
    with pytest.raises(ConfigurationError, match=r"one of tanh, relu, .*; got 'cube'"):
        Network(member.policy, member.value, "cube")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_output_is_larger_than_the_bound(activation: str) -> None:
    rng = np.random.default_rng(0)
    (member,) = random_policy(rng).members
    network = Network(member.policy, member.value, activation)
    inputs = rng.uniform(-1, 1, (500, network.sizes("policy")[0])).astype(np.float32)
    first, *_ = network.policy
    aligned = np.sign(first.weight)  # the inputs for which the first layer's sums are largest
    for net in ("policy", "value"):
        outputs = network.forward(net, np.concatenate([inputs, aligned, -aligned]))
        assert np.abs(outputs).max() <= network.largest_output(net)
