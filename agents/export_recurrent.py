"""From a RecurrentPPO model of sb3-contrib to a policy file that decides alike.

Only the actor is kept: nothing that decides asks the critic.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlbatch.agents.sb3_zip import SavedModel
from rlbatch.agents.weights import MODULES
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.network import Layer, Network
from rlbatch.policy.recurrent import MemoryLayer, RecurrentPolicy

RECURRENT_CLASS = "sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy"

_RUNS, _STEPS = 100, 100
_ROUNDING = 1e-5  # relative to the outputs: two that are closer are a tie in float32
_LSTM, _NET = "lstm_actor.", "mlp_extractor.policy_net."


def recurrent_policy(
    saved: SavedModel, grid: tuple[float, ...], activation: str, card: PolicyCard
) -> RecurrentPolicy:
    """Return the policy of a model.

    Args:
        saved: The model, of the class `RECURRENT_CLASS`.
        grid: Changes of log2(batch size), in the order of its actions.
        activation: Between its dense layers, one of `MODULES`.
        card: Of the policy.

    Raises:
        ConfigurationError: Its memory is none of plain torch.nn.LSTM, or takes something else than
            an observation.
        PolicyFileError: The policy would decide otherwise in runs of random observations.
    """
    lstm = _rebuilt(saved)
    memory: list[MemoryLayer] = []
    for index in range(lstm.num_layers):
        inputs, recurrent, first, second = (
            saved.parameters[f"{_LSTM}{name}_l{index}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        memory.append(MemoryLayer(inputs, recurrent, first + second))
    *hidden, last = _dense(saved)
    order = np.argsort(grid, kind="stable")
    ascending = Layer(last.weight[order], last.bias[order])
    units = memory[-1].units
    silent = Layer(np.zeros((1, units), np.float32), np.zeros(1, np.float32))
    network = Network((*hidden, ascending), (silent,), activation)
    policy = RecurrentPolicy(tuple(memory), network, tuple(grid[i] for i in order), card)
    _compare(saved, policy, lstm, [*hidden, last], activation, order)
    return policy


def action_count(saved: SavedModel) -> int:
    """Return how many actions a model chooses among."""
    if "action_net.bias" not in saved.parameters:
        raise ConfigurationError(
            f"{saved.origin} has no layer action_net. Train with a discrete action space."
        )
    return len(saved.parameters["action_net.bias"])


def _dense(saved: SavedModel) -> list[Layer]:
    names = {name.rpartition(".")[0] for name in saved.parameters if name.startswith(_NET)}
    ordered = sorted(names, key=lambda name: int(name.removeprefix(_NET)))
    return [
        Layer(saved.parameters[f"{name}.weight"], saved.parameters[f"{name}.bias"])
        for name in [*ordered, "action_net"]
    ]


def _rebuilt(saved: SavedModel) -> torch.nn.LSTM:
    """Return torch's memory with the model's weights."""
    weights = {
        name.removeprefix(_LSTM): torch.tensor(array)
        for name, array in saved.parameters.items()
        if name.startswith(_LSTM)
    }
    found = [re.fullmatch(r"weight_ih_l(\d+)", name) for name in weights]
    layers = 1 + max((int(match[1]) for match in found if match), default=-1)
    if not layers:
        raise ConfigurationError(
            f"{saved.origin} has no memory {_LSTM}*. Train with policy='MlpLstmPolicy'."
        )
    size, units = weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1]
    if size != OBSERVATION_SIZE:
        raise ConfigurationError(
            f"{saved.origin} takes {size} numbers, and an observation of this rlbatch has "
            f"{OBSERVATION_SIZE}. Train on its environments as they are, without stacked frames or "
            "additional features."
        )
    lstm = torch.nn.LSTM(size, units, layers)
    try:
        lstm.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{saved.origin} has another memory than torch.nn.LSTM with its default settings: "
            f"{' '.join(str(error).split())} Train without lstm_kwargs."
        ) from error
    return lstm


def _compare(
    saved: SavedModel,
    policy: RecurrentPolicy,
    lstm: torch.nn.LSTM,
    layers: list[Layer],
    activation: str,
    order: NDArray[np.intp],
) -> None:
    """Refuse a policy that decides otherwise than torch does, in runs of random observations."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1.0, 1.0, (_STEPS, _RUNS, OBSERVATION_SIZE)).astype(np.float32)
    with torch.no_grad():
        values: Any = lstm(torch.tensor(seen))[0]
        for place, layer in enumerate(layers):
            values = values if place == 0 else MODULES[activation]()(values)
            values = values @ torch.tensor(layer.weight).T + torch.tensor(layer.bias)
    wanted = values.numpy()[..., order]
    state, wrong = policy.initial_state((_RUNS,)), 0
    for step in range(_STEPS):
        got, state = policy.advance(seen[step], state)
        chosen, right = got.argmax(axis=-1), wanted[step].argmax(axis=-1)
        rows = np.flatnonzero(chosen != right)
        gap = np.abs(got[rows, chosen[rows]] - got[rows, right[rows]])
        wrong += int((gap > _ROUNDING * np.abs(got[rows]).max(axis=-1, initial=0.0)).sum())
    if wrong:
        raise PolicyFileError(
            f"{saved.origin}: the exported policy would decide otherwise in {wrong} of "
            f"{_RUNS * _STEPS} observations, and was not written. Train with "
            "policy='MlpLstmPolicy' as it is."
        )
