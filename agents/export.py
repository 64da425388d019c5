"""From a model of stable-baselines3 to a policy file that decides alike.

PPO, A2C and other actor-critics, and DQN, with `MlpPolicy`; RecurrentPPO of sb3-contrib with
`MlpLstmPolicy` (`rlbatch.agents.export_recurrent`). The value beside a decision is the
critic's; of a DQN it is the mean of its action values, and its probabilities are their softmax.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from rlbatch.agents.critic import PrivilegedCriticPolicy, deployable
from rlbatch.agents.export_recurrent import RECURRENT_CLASS, action_count, recurrent_policy
from rlbatch.agents.masking import blind
from rlbatch.agents.progress import PROGRESS
from rlbatch.agents.recipes import RECIPES, Recipe
from rlbatch.agents.sb3_zip import SavedModel, action_grid, class_of, from_memory, read_zip
from rlbatch.agents.weights import MODULES
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import load_any_policy, load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network, softmax
from rlbatch.policy.recurrent import RecurrentPolicy

_COMPARED = 10_000
_ROUNDING = 1e-5  # relative to the outputs: two that are closer are a tie in float32
_LOG_ROUNDING = 1e-6  # likewise of the logarithms of probabilities, which actor-critics compare
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"


def export_model(
    source: Path | str | Any,
    path: Path | str,
    *,
    actions: Sequence[float] | None = None,
    card: PolicyCard | None = None,
    limits: bool = False,
) -> LearnedPolicy | RecurrentPolicy:
    """Write the policy file of a model, and return the policy.

    The file is written only if it repeats the model's deterministic actions on 10,000 random
    observations, ties within float32's rounding excepted. No code of a zip is run.

    Args:
        source: A zip that `model.save` or `rlbatch train` (checkpoint.zip) wrote, or the model.
        path: Where to.
        actions: The environment's changes of log2(batch size), in the order of its actions; None
            for those that the model was trained with, or the default ones where it has none.
        card: How the policy was made; None for what is known.
        limits: Of the checkpoint of `rlbatch train`: add its recipe's `goodput_slack`,
            `noise_ceiling`, `keeps_steps` and `near_base`, as the training does at its end. They
            act beside the network.

    Raises:
        PolicyFileError: The zip cannot be read, or the file would decide otherwise.
        ConfigurationError: The model is of a kind that a policy file does not hold.
    """
    saved = read_zip(Path(source)) if isinstance(source, Path | str) else from_memory(source)
    kind = _kind(saved)
    activation = _activation(saved, kind)
    _require_plain(saved)
    recipe = _recipe_of(Path(source)) if isinstance(source, Path | str) else None
    if limits and recipe is None:
        raise ConfigurationError(
            f"{saved.origin} has no recipe of this rlbatch beside it ({PROGRESS}), whose limits "
            "could be added. Export it without them."
        )
    card = card or _card(recipe)
    if kind is _RECURRENT:
        grid = action_grid(saved, action_count(saved), actions)
        save_policy(path, recurrent_policy(saved, grid, activation, card))
        return load_any_policy(path)
    network = _network(saved, kind, activation, recipe)
    grid = action_grid(
        saved, network.sizes("policy")[-1], actions or (recipe.actions if recipe else None)
    )
    _compare(saved, kind, network, recipe)
    ascending = np.argsort(grid, kind="stable")
    policy = LearnedPolicy(
        (_reordered(network, ascending),),
        action_grid=tuple(float(grid[i]) for i in ascending),
        **(recipe.limits if limits and recipe else {}),
        card=card,
    )
    save_policy(path, policy)
    return load_policy(path)


@dataclass(frozen=True)
class _Kind:
    """A class of policies: how its nets are called, and its activation unless another is given."""

    made: type[Any]
    activation: type[torch.nn.Module]


_RECURRENT = _Kind(object, torch.nn.Tanh)  # not imported: sb3-contrib need not be installed
_KINDS = {
    RECURRENT_CLASS: _RECURRENT,
} | {
    f"{kind.made.__module__}.{kind.made.__qualname__}": kind
    for kind in (
        _Kind(ActorCriticPolicy, torch.nn.Tanh),
        _Kind(PrivilegedCriticPolicy, torch.nn.Tanh),
        _Kind(DQNPolicy, torch.nn.ReLU),
    )
}


def _kind(saved: SavedModel) -> _Kind:
    kind = _KINDS.get(saved.policy_class)
    if kind is None:
        raise ConfigurationError(
            f"{saved.origin} has a policy of the class {saved.policy_class or '(unnamed)'}; a "
            "policy file holds those of PPO, A2C and DQN with policy='MlpPolicy', and of "
            "RecurrentPPO with policy='MlpLstmPolicy'. Train one."
        )
    return kind


def _activation(saved: SavedModel, kind: _Kind) -> str:
    default = f"{kind.activation.__module__}.{kind.activation.__qualname__}"
    found = class_of(saved.keywords, "activation_fn", default)
    for name, module in MODULES.items():
        if found == f"{module.__module__}.{module.__qualname__}":
            return name
    raise ConfigurationError(
        f"{saved.origin} has the activation {found}; a policy file holds "
        f"{', '.join(module.__name__ for module in MODULES.values())} of torch.nn. Train with one "
        "of them."
    )


def _require_plain(saved: SavedModel) -> None:
    """Refuse what stands between the observation and the first layer, or after the last."""
    extractor = class_of(saved.keywords, "features_extractor_class", _FLATTEN)
    if extractor != _FLATTEN:
        raise ConfigurationError(
            f"{saved.origin} has the features extractor {extractor}; a policy file holds dense "
            "layers on the observation itself. Train without features_extractor_class."
        )
    saved.spaces.require_plain(saved.origin)


def _network(saved: SavedModel, kind: _Kind, activation: str, recipe: Recipe | None) -> Network:
    parameters = saved.parameters
    if kind.made is DQNPolicy:
        network = _from_dqn(saved, activation)
    else:
        parameters = deployable(parameters)
        parameters = blind(parameters, recipe.hidden) if recipe and recipe.hidden else parameters
        network = Network.from_sb3(parameters, activation)
    size = network.sizes("policy")[0]
    if size != OBSERVATION_SIZE:
        raise ConfigurationError(
            f"{saved.origin} takes {size} numbers, and an observation of this rlbatch has "
            f"{OBSERVATION_SIZE}. Train on its environments as they are, without stacked frames or "
            "additional features."
        )
    return network


def _from_dqn(saved: SavedModel, activation: str) -> Network:
    prefix = "q_net.q_net."
    names = {name.rpartition(".")[0] for name in saved.parameters if name.startswith(prefix)}
    order = sorted(names, key=lambda name: int(name.removeprefix(prefix)))
    layers = [
        Layer(saved.parameters[f"{name}.weight"], saved.parameters[f"{name}.bias"])
        for name in order
    ]
    if not layers:
        raise ConfigurationError(
            f"{saved.origin} has no layers {prefix}* of a DQN. Train with policy='MlpPolicy'."
        )
    last = layers[-1]
    mean = Layer(last.weight.mean(axis=0, keepdims=True), last.bias.mean(keepdims=True))
    return Network(tuple(layers), (*layers[:-1], mean), activation)


def _reordered(network: Network, order: NDArray[np.intp]) -> Network:
    """Return the network whose outputs come in another order."""
    *hidden, last = network.policy
    return replace(network, policy=(*hidden, Layer(last.weight[order], last.bias[order])))


def _tie(outputs: NDArray[Any]) -> NDArray[Any]:
    """Return the difference up to which outputs, (n, actions), are equal for float32.

    Outputs near zero, as of a net that has hardly learned, differ by less than what is lost where
    their logarithm of the sum of exponentials is subtracted.
    """
    logs = np.log(softmax(outputs))
    return np.maximum(
        _ROUNDING * np.abs(outputs).max(axis=-1, initial=0.0),
        _LOG_ROUNDING * np.abs(logs).max(axis=-1, initial=0.0),
    )


def _compare(saved: SavedModel, kind: _Kind, network: Network, recipe: Recipe | None) -> None:
    """Refuse a network that decides otherwise than stable-baselines3's own policy."""
    model = _rebuilt(saved, kind, network)
    rng = np.random.default_rng(0)
    (size,) = model.observation_space.shape
    seen = rng.uniform(-1.0, 1.0, (_COMPARED, size)).astype(np.float32)
    if recipe and recipe.hidden:
        hidden = np.abs(network.policy[0].weight).sum(axis=0) == 0
        seen[:, :OBSERVATION_SIZE][:, hidden] = 0.0  # as the model was shown them
    wanted = np.asarray(model.predict(seen, deterministic=True)[0])
    outputs = network.forward("policy", seen[:, :OBSERVATION_SIZE])
    got = softmax(outputs).argmax(axis=-1)
    rows = np.flatnonzero(got != wanted)
    gap = np.abs(outputs[rows, got[rows]] - outputs[rows, wanted[rows]])
    wrong = int((gap > _tie(outputs[rows])).sum())
    if wrong:
        raise PolicyFileError(
            f"{saved.origin}: the exported policy would decide otherwise in {wrong} of {_COMPARED} "
            "observations, and was not written. Train with policy='MlpPolicy' as it is."
        )


def _rebuilt(saved: SavedModel, kind: _Kind, network: Network) -> Any:
    """Return stable-baselines3's policy with the model's weights."""
    policy, value = (list(network.sizes(net)[1:-1]) for net in ("policy", "value"))
    arch: Any = policy if kind.made is DQNPolicy else {"pi": policy, "vf": value}
    size = _inputs(saved)
    model = kind.made(
        gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32),
        gymnasium.spaces.Discrete(network.sizes("policy")[-1]),
        lambda _: 0.0,
        net_arch=arch,
        activation_fn=MODULES[network.activation],
    )
    try:
        model.load_state_dict(
            {name: torch.tensor(array) for name, array in saved.parameters.items()}
        )
    except RuntimeError as error:
        raise ConfigurationError(
            f"{saved.origin} has other layers than an MlpPolicy: {' '.join(str(error).split())} "
            "Train with policy='MlpPolicy' as it is."
        ) from error
    model.set_training_mode(False)
    return model


def _inputs(saved: SavedModel) -> int:
    """How many numbers the model was shown: its widest first layer's."""
    first = [
        array.shape[1]
        for name, array in saved.parameters.items()
        if array.ndim == 2 and name.startswith(("mlp_extractor.", "q_net.")) and ".0." in name
    ]
    heads = [saved.parameters[name].shape[1] for name in ("action_net.weight",) if not first]
    return max(first + heads)


def _recipe_of(path: Path) -> Recipe | None:
    """Return the recipe of a training's checkpoint, by the note beside it; None of others."""
    note = path.parent / PROGRESS
    if not note.is_file():
        return None
    try:
        state = json.loads(note.read_text())
        recipe = RECIPES.get(state["name"])
    except (ValueError, KeyError, TypeError):
        return None
    return recipe if recipe is not None and recipe.digest() == state["recipe"] else None


def _card(recipe: Recipe | None) -> PolicyCard:
    return PolicyCard(recipe="stable-baselines3") if recipe is None else recipe.card()
