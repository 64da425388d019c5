"""An actor-critic of dense layers, run with NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


ACTIVATIONS: dict[str, Activation] = {"tanh": np.tanh, "relu": _relu}


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
        activation: "tanh" or "relu".
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

        By the triangle inequality: |W x + b| <= |W| |x| + |b|. tanh gives at most 1, and relu at
        most what it is given.
        """
        bound, largest = np.float64(1.0), 0.0
        for layer in getattr(self, net):
            sums = np.abs(layer.weight).sum(axis=1, dtype=np.float64) * bound
            top = float((sums + np.abs(layer.bias)).max())
            largest, bound = max(largest, top), np.float64(top)
            if self.activation == "tanh":
                bound = np.float64(min(top, 1.0))
        return largest

    def sizes(self, net: str) -> tuple[int, ...]:
        """Return the layer sizes of the net `policy` or `value`, inputs first."""
        layers: tuple[Layer, ...] = getattr(self, net)
        return (layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers))


def softmax(logits: Float32) -> Float32:
    """Return probabilities over the last axis; -inf becomes exactly 0."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


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
