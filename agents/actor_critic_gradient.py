"""The gradient of PPO's loss of two perceptrons, written out, in blocks that stay in the cache.

On a processor's core PyTorch takes as long again for such small networks as their matrix products:
a minibatch of thousands of samples goes through memory at every layer, and hyperbolic tangents take
seven times as long as NumPy's. Here 512 samples go all the way forth and back before the next ones.
The loss is `rlbatch.agents.regret_ppo`'s; the gradient is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from rlbatch.agents.critic import PrivilegedCriticPolicy, known_regrets
from rlbatch.observation import OBSERVATION_SIZE

Floats = NDArray[np.float32]

_BLOCK = 512


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss.

    Attributes:
        clip: How far the ratio of probabilities may go from 1.
        entropy: Weight of minus the entropy.
        value: Of the squared error of the values.
        regret: Of the expected regret.
    """

    clip: float
    entropy: float
    value: float
    regret: float


@dataclass(frozen=True)
class Minibatch:
    """Samples of a rollout, each array's first axis.

    Attributes:
        observations: Shape (n, features).
        actions: Numbers of the actions.
        advantages: Normalised.
        returns: What the values should have been.
        old_log_prob: Of the actions, under the policy that took them.
    """

    observations: Floats
    actions: NDArray[np.int64]
    advantages: Floats
    returns: Floats
    old_log_prob: Floats


class ActorCriticGradient:
    """Puts the gradient of a loss where an optimizer looks for it."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        """Look at a policy that `fits`."""
        extractor: Any = policy.mlp_extractor
        self._sees_all = not isinstance(policy, PrivilegedCriticPolicy)
        self._actor = _Perceptron(extractor.policy_net, policy.action_net)  # type: ignore[arg-type]
        self._critic = _Perceptron(extractor.value_net, policy.value_net)

    def __call__(self, batch: Minibatch, weights: Weights) -> dict[str, float]:
        """Set the gradients; return the means of the terms, and of two figures of the ratio."""
        self._actor.clear()
        self._critic.clear()
        count = len(batch.actions)
        sums: dict[str, float] = {}
        for start in range(0, count, _BLOCK):
            part = Minibatch(*(v[start : start + _BLOCK] for v in vars(batch).values()))
            for name, value in self._block(part, weights, count).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        self._actor.give()
        self._critic.give()
        return {name: value / count for name, value in sums.items()}

    def _block(self, part: Minibatch, weights: Weights, count: int) -> dict[str, float]:
        seen = part.observations
        own = seen if self._sees_all else seen[:, :OBSERVATION_SIZE]
        log_p = self._actor.forward(own)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        entropy = -(p * log_p).sum(axis=1)
        rows = np.arange(len(p))
        log_ratio = log_p[rows, part.actions] - part.old_log_prob
        ratio, advantages = np.exp(log_ratio), part.advantages
        free = advantages * ratio
        clipped = advantages * np.clip(ratio, 1.0 - weights.clip, 1.0 + weights.clip)

        # Of the loss with respect to the logits z: d log p_a = 1_a - p, d(-H) = p (log p + H).
        along = np.where(free <= clipped, -free, np.float32(0.0))
        delta = -along[:, None] * p
        delta[rows, part.actions] += along
        delta += np.float32(weights.entropy) * p * (log_p + entropy[:, None])
        regret = np.zeros(1, np.float32)
        if not self._sees_all:
            regrets = known_regrets(seen)
            regret = (p * regrets).sum(axis=1)
            if weights.regret:
                delta += np.float32(weights.regret) * p * (regrets - regret[:, None])
        self._actor.backward(delta * np.float32(1.0 / count))

        error = self._critic.forward(seen)
        error -= part.returns[:, None]
        squared = float(np.square(error).sum())
        self._critic.backward(error * np.float32(2.0 * weights.value / count))
        return {
            "policy_gradient_loss": -np.minimum(free, clipped).sum(),
            "value_loss": squared,
            "entropy_loss": -entropy.sum(),
            "regret_loss": regret.sum(),
            "clip_fraction": (np.abs(ratio - 1.0) > weights.clip).sum(),
            "approx_kl": (ratio - 1.0 - log_ratio).sum(),
        }


class _Perceptron:
    """Linear layers with an activation between them, and their gradients."""

    def __init__(self, hidden: nn.Sequential, head: nn.Linear) -> None:
        self._linear = [layer for layer in hidden if isinstance(layer, nn.Linear)] + [head]
        self._forth, self._back = _ACTIVATIONS[type(hidden[1])]
        self._gradients = [
            tuple(np.zeros(p.shape, np.float32) for p in (layer.weight, layer.bias))
            for layer in self._linear
        ]
        self._inputs: list[Floats] = []

    def clear(self) -> None:
        """Set the gradients to 0."""
        for weight, bias in self._gradients:
            weight[:], bias[:] = 0.0, 0.0

    def give(self) -> None:
        """Hand the gradients to the parameters."""
        for layer, (weight, bias) in zip(self._linear, self._gradients, strict=True):
            layer.weight.grad, layer.bias.grad = torch.from_numpy(weight), torch.from_numpy(bias)

    def forward(self, values: Floats) -> Floats:
        """Return the outputs, of a block."""
        self._inputs = []
        for place, layer in enumerate(self._linear):
            if place:
                self._forth(values)
            self._inputs.append(values)
            values = values @ layer.weight.detach().numpy().T
            values += layer.bias.detach().numpy()
        return values

    def backward(self, delta: Floats) -> None:
        """Add the gradients of the block, given that of its outputs."""
        ones = np.ones(len(delta), np.float32)
        for place in range(len(self._linear) - 1, -1, -1):
            weight, bias = self._gradients[place]
            inputs = self._inputs[place]
            weight += delta.T @ inputs
            bias += ones @ delta
            if place:
                delta = delta @ self._linear[place].weight.detach().numpy()
                self._back(delta, inputs)


def _relu(values: Floats) -> None:
    np.maximum(values, np.float32(0.0), out=values)


def _relu_back(delta: Floats, values: Floats) -> None:
    delta *= values > 0.0


def _tanh(values: Floats) -> None:
    np.tanh(values, out=values)


def _tanh_back(delta: Floats, values: Floats) -> None:
    delta -= delta * (values * values)


_ACTIVATIONS: dict[Any, tuple[Callable[..., None], Callable[..., None]]] = {
    nn.ReLU: (_relu, _relu_back),
    nn.Tanh: (_tanh, _tanh_back),
}


def fits(policy: ActorCriticPolicy) -> bool:
    """Return whether a policy is of the kind whose gradient is written out here.

    That is two perceptrons on the CPU, with ReLU or tanh, that share nothing, and single actions.
    """
    extractor: Any = policy.mlp_extractor
    parameters = list(policy.parameters())
    hidden = [*extractor.policy_net, *extractor.value_net]
    plain = (
        type(policy) in (ActorCriticPolicy, PrivilegedCriticPolicy)
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.action_dist) is CategoricalDistribution
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    )
    activations = {type(layer) for layer in hidden[1::2]}
    return (
        plain
        and bool(len(extractor.policy_net) and len(extractor.value_net))
        and all(type(layer) is nn.Linear for layer in hidden[::2])
        and len(activations) == 1
        and activations <= set(_ACTIVATIONS)
    )
