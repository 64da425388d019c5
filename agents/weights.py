"""Weights between a training and a policy file."""

from __future__ import annotations

from pathlib import Path

import torch
from stable_baselines3 import PPO

from rlbatch.agents.critic import PrivilegedCriticPolicy, deployable, privileged
from rlbatch.agents.masking import blind
from rlbatch.agents.recipes import Recipe
from rlbatch.errors import ConfigurationError
from rlbatch.policy.file import save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Network

MODULES = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "leaky-relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "selu": torch.nn.SELU,
    "silu": torch.nn.SiLU,
    "gelu": torch.nn.GELU,
    "mish": torch.nn.Mish,
    "sigmoid": torch.nn.Sigmoid,
    "softplus": torch.nn.Softplus,
    "softsign": torch.nn.Softsign,
    "identity": torch.nn.Identity,
}
"""torch's of `rlbatch.policy.network.ACTIVATIONS`, with their default settings."""


def export_policy(model: PPO, recipe: Recipe, path: Path) -> None:
    """Write the deployable policy file of a model that was trained by a recipe.

    Raises:
        ConfigurationError: The model is no actor-critic, or its activation is none of `MODULES`.
    """
    used = getattr(model.policy, "activation_fn", None)
    activation = next((name for name, module in MODULES.items() if module is used), None)
    if activation is None or not hasattr(model.policy, "action_net"):
        raise ConfigurationError(
            f"Expected an actor-critic with one of the activations {', '.join(MODULES)}, got "
            f"{type(model.policy).__name__} with {used}. For models that were trained by other "
            "means there is rlbatch.agents.export.export_model."
        )
    card = recipe.card()
    parameters = {name: tensor.cpu().numpy() for name, tensor in model.policy.state_dict().items()}
    network = Network.from_sb3(blind(deployable(parameters), recipe.hidden), activation)
    policy = LearnedPolicy(
        (network,),
        action_grid=recipe.actions,
        **recipe.limits,
        card=card,
    )
    save_policy(path, policy, card)


def load_weights(model: PPO, policy: LearnedPolicy) -> None:
    """Give a model the weights of a deployed policy, to train it further.

    Raises:
        ConfigurationError: The policy is an ensemble, or its layers or actions are others.
    """
    if len(policy.members) != 1:
        raise ConfigurationError(
            f"Only a single network can be trained further, got "
            f"an ensemble of {len(policy.members)}."
        )
    (member,) = policy.members
    if model.policy.activation_fn is not MODULES[member.activation]:
        raise ConfigurationError(
            f"The recipe's activation is to be the policy's, {member.activation}. Choose a recipe "
            "with the same one."
        )
    weights: dict[str, torch.Tensor] = {}
    for net, head, layers in (
        ("policy_net", "action_net", member.policy),
        ("value_net", "value_net", member.value),
    ):
        names = [f"mlp_extractor.{net}.{2 * i}" for i in range(len(layers) - 1)]
        for name, layer in zip([*names, head], layers, strict=True):
            weights[f"{name}.weight"] = torch.tensor(layer.weight)
            weights[f"{name}.bias"] = torch.tensor(layer.bias)
    if isinstance(model.policy, PrivilegedCriticPolicy):
        weights = privileged(weights)
    try:
        model.policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigurationError(
            "The policy's layers or actions are not those of the recipe. Choose a recipe with the "
            "same ones."
        ) from error
