"""An actor-critic of dense layers, run with NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.errors import ConfigurationError

Float32 = NDArray[np.float32]
Activation = Callable[[Float32], Float32]


def _relu(values: Float32) -> Float32:
    return np.maximum(values, np.float32(0.0))


def _leaky_relu(values: Float32) -> Float32:
    return np.where(values > 0, values, np.float32(0.01) * values)


def _elu(values: Float32) -> Float32:
    return np.where(values > 0, values, np.expm1(np.minimum(values, np.float32(0.0))))


def _selu(values: Float32) -> Float32:
    """Return Klambauer et al. 2017's, with their two constants."""
    return np.float32(1.0507009873554805) * np.where(
        values > 0, values, np.float32(1.6732632423543772) * np.expm1(np.minimum(values, 0))
    )


def _sigmoid(values: Float32) -> Float32:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * values)


def _silu(values: Float32) -> Float32:
    return values * _sigmoid(values)


def _softplus(values: Float32) -> Float32:
    return np.logaddexp(values, np.float32(0.0))


def _mish(values: Float32) -> Float32:
    return values * np.tanh(_softplus(values))


def _softsign(values: Float32) -> Float32:
    return values / (np.float32(1.0) + np.abs(values))


_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(values: Float32) -> Float32:
    """Return x Phi(x), Phi being the normal distribution's."""
    scaled = values.astype(np.float64) / math.sqrt(2.0)
    normal = 0.5 + 0.5 * np.asarray(_erf(scaled), dtype=np.float64)
    return np.asarray(values * normal, dtype=np.float32)


def _identity(values: Float32) -> Float32:
    return values


ACTIVATIONS: dict[str, Activation] = {
    "tanh": np.tanh,
    "relu": _relu,
    "leaky-relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "silu": _silu,
    "gelu": _gelu,
    "mish": _mish,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "softsign": _softsign,
    "identity": _identity,
}
"""What may stand between two layers, with torch's default settings."""


class Layer(NamedTuple):
    """One dense layer, `inputs @ weight.T + bias`: weight (outputs, inputs), bias (outputs,)."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, eq=False)
class Network:
    """The two nets of an actor-critic, each a chain of dense layers, activation in between.

    Attributes:
        policy: Layers from the observation to one logit an action.
        value: Layers from the observation to one value.
        activation: One of `ACTIVATIONS`.
    """

    policy: tuple[Layer, ...]
    value: tuple[Layer, ...]
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"Network.activation must be one of {', '.join(ACTIVATIONS)}; "
                f"got {self.activation!r}."
            )
        for net in ("policy", "value"):
            layers = tuple(_frozen_layer(layer, net) for layer in getattr(self, net))
            _check_chain(layers, net)
            object.__setattr__(self, net, layers)

    @classmethod
    def from_sb3(cls, parameters: Mapping[str, ArrayLike], activation: str = "tanh") -> Network:
        """Return the network of a stable-baselines3 `MlpPolicy` without shared layers.

        Args:
            parameters: `model.policy.state_dict()`, with the tensors on the CPU.
            activation: The one that the `MlpPolicy` was made with.

        Raises:
            ConfigurationError: The names are not those of an `MlpPolicy`.
        """

        def layer(name: str) -> Layer:
            try:
                weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            except KeyError as error:
                raise ConfigurationError(
                    f"Expected parameters of a stable-baselines3 MlpPolicy; {error} is missing. "
                    "Train with policy='MlpPolicy' and a discrete action space."
                ) from error
            return Layer(np.asarray(weight), np.asarray(bias))

        def chain(hidden: str, last: str) -> tuple[Layer, ...]:
            prefix = f"mlp_extractor.{hidden}."
            names = {name.rpartition(".")[0] for name in parameters if name.startswith(prefix)}
            in_order = sorted(names, key=lambda name: int(name.removeprefix(prefix)))
            return tuple(layer(name) for name in [*in_order, last])

        policy = chain("policy_net", "action_net")
        return cls(policy, chain("value_net", "value_net"), activation)

    def forward(self, net: str, inputs: Float32) -> Float32:
        """Return what the net `policy` or `value` gives, shape (..., outputs).

        Args:
            net: Which.
            inputs: Shape (..., inputs).
        """
        *hidden, last = getattr(self, net)
        activate = ACTIVATIONS[self.activation]
        for layer in hidden:
            inputs = activate(inputs @ layer.weight.T + layer.bias)
        return inputs @ last.weight.T + last.bias

    def largest_output(self, net: str) -> float:
        """Return a bound of every number on the way through a net, for inputs within [-1, 1].

        By the triangle inequality: |W x + b| <= |W| |x| + |b|. tanh, sigmoid and softsign give at
        most 1, softplus at most ln(2) more than it is given, selu 1.76 times it, the others it.
        """
        bound, largest = np.float64(1.0), 0.0
        for layer in getattr(self, net):
            sums = np.abs(layer.weight).sum(axis=1, dtype=np.float64) * bound
            top = float((sums + np.abs(layer.bias)).max())
            largest, bound = max(largest, top), np.float64(top)
            if self.activation in ("tanh", "sigmoid", "softsign"):
                bound = np.float64(1.0)
            elif self.activation == "softplus":
                bound = np.float64(top + math.log(2.0))
            elif self.activation == "selu":
                bound = np.float64(1.76 * top)
        return largest

    def sizes(self, net: str) -> tuple[int, ...]:
        """Return the layer sizes of the net `policy` or `value`, inputs first."""
        layers: tuple[Layer, ...] = getattr(self, net)
        return (layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers))


class Stack:
    """Networks of the same shape, run together on one observation, with the results of each alone.

    A decision of six networks takes a third of the time: they are read once, layer by layer, and
    there is one call of NumPy a layer.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        """Take the networks; their layers are copied into one array each.

        Args:
            members: At least one; see `can_stack`.
        """
        self._members = members
        self._activate = ACTIVATIONS[members[0].activation]
        self._layers: dict[str, tuple[Layer, ...]] = {}  # by net, made when it is first asked for

    @staticmethod
    def can_stack(members: Sequence[Network]) -> bool:
        """Return whether all networks have the same layers and activation."""
        first = members[0]
        return all(
            member.activation == first.activation
            and all(member.sizes(net) == first.sizes(net) for net in ("policy", "value"))
            for member in members
        )

    def forward(self, net: str, inputs: Float32) -> Float32:
        """Return what each network's net `policy` or `value` gives, shape (networks, outputs).

        Args:
            net: Which.
            inputs: Of a single observation, shape (inputs,).
        """
        if net not in self._layers:
            self._layers[net] = self._stacked(net)
        *hidden, last = self._layers[net]
        values = inputs[None, None, :]
        for layer in hidden:
            values = values @ layer.weight
            values += layer.bias
            values = self._activate(values)
        return (values @ last.weight + last.bias)[:, 0]

    def _stacked(self, net: str) -> tuple[Layer, ...]:
        chains = [getattr(member, net) for member in self._members]
        return tuple(
            Layer(
                np.stack([layer.weight for layer in layers]).swapaxes(1, 2),
                np.stack([layer.bias for layer in layers])[:, None, :],
            )
            for layers in zip(*chains, strict=True)
        )


def softmax(logits: Float32) -> Float32:
    """Return probabilities over the last axis; -inf becomes exactly 0."""
    weights = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    return (weights / np.add.reduce(weights, axis=-1, keepdims=True)).astype(np.float32)


def _frozen_layer(layer: Layer, net: str) -> Layer:
    weight, bias = (np.array(part, dtype=np.float32) for part in layer)
    if weight.ndim != 2 or 0 in weight.shape or bias.shape != weight.shape[:1]:
        raise ConfigurationError(
            f"A layer of the {net} net needs a weight of shape (outputs, inputs) and a bias of "
            f"shape (outputs,); got {weight.shape} and {bias.shape}."
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ConfigurationError(
            f"The {net} net has weights that are not finite: its training diverged. Use an "
            "earlier checkpoint."
        )
    weight.setflags(write=False)
    bias.setflags(write=False)
    return Layer(weight, bias)


def _check_chain(layers: tuple[Layer, ...], net: str) -> None:
    if not layers:
        raise ConfigurationError(f"The {net} net needs at least one layer; got none.")
    for before, after in pairwise(layers):
        if before.weight.shape[0] != after.weight.shape[1]:
            raise ConfigurationError(
                f"Layers of the {net} net do not fit: one gives {before.weight.shape[0]} numbers, "
                f"the next takes {after.weight.shape[1]}."
            )
