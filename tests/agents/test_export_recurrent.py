"""RecurrentPPO of sb3-contrib: trained on the environment, exported, deployed, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlbatch.agents.export import export_model
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.policy.recurrent import RecurrentPolicy
from rlbatch.policy.registry import resolve_policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract, random_run
from tests.agents.test_export import Still

sb3_contrib = pytest.importorskip("sb3_contrib")
RUNS, STEPS = 100, 100


def make(actions: int = 7, **keywords: Any) -> Any:
    """A model whose weights tell actions and what came before apart."""
    model = sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy", Still(actions=actions), device="cpu", seed=3, policy_kwargs=keywords
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "keywords",
    [
        {"lstm_hidden_size": 24, "n_lstm_layers": 2, "activation_fn": nn.ReLU},
        {"lstm_hidden_size": 40, "shared_lstm": True, "enable_critic_lstm": False},
        {"lstm_hidden_size": 16, "net_arch": [], "enable_critic_lstm": False},
    ],
)
def test_a_file_repeats_the_models_actions_in_runs(
    keywords: dict[str, Any], tmp_path: Path
) -> None:
    model, path = make(**keywords), tmp_path / "p.safetensors"
    model.save(tmp_path / "model.zip")
    export_model(tmp_path / "model.zip", path)
    policy = resolve_policy(str(path))
    assert isinstance(policy, RecurrentPolicy)
    rng, different = np.random.default_rng(17), 0
    theirs, state = None, policy.initial_state((RUNS,))
    chosen: set[float] = set()
    seen, changes = np.zeros(0, np.float32), np.zeros(0)
    for step in range(STEPS):
        seen = rng.uniform(-1, 1, (RUNS, OBSERVATION_SIZE)).astype(np.float32)
        begins = np.full(RUNS, step == 0)
        wanted, theirs = model.predict(seen, theirs, begins, deterministic=True)
        made, state = policy.decide(seen, simple_signals(), state)
        changes = np.asarray(made.log2_change)
        different += int((np.array(DEFAULT_ACTIONS)[wanted] != changes).sum())
        chosen |= set(changes.tolist())
    assert len(chosen) > 2
    assert different <= 1  # a tie in float32
    fresh, _ = policy.decide(seen, simple_signals(), policy.initial_state((RUNS,)))
    assert (np.asarray(fresh.log2_change) != changes).any()  # memory matters


def test_actions_come_in_any_order_and_a_file_survives_itself(tmp_path: Path) -> None:
    model, path = make(actions=3, lstm_hidden_size=8), tmp_path / "p.safetensors"
    policy = export_model(model, path, actions=(0.5, 0.0, -0.5))
    assert policy.action_grid == (-0.5, 0.0, 0.5)
    seen = np.random.default_rng(1).uniform(-1, 1, (50, OBSERVATION_SIZE)).astype(np.float32)
    wanted, _ = model.predict(seen, None, np.ones(50), deterministic=True)
    made, _ = policy.decide(seen, simple_signals(), policy.initial_state((50,)))
    np.testing.assert_array_equal(made.log2_change, np.array([0.5, 0.0, -0.5])[wanted])
    with pytest.raises(PolicyFileError, match="recurrent"):
        load_policy(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(PolicyFileError, match="checksum"):
        resolve_policy(str(path))


def test_what_numpy_does_not_do_alike_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(ConfigurationError, match="3 actions and the action grid 7"):
        export_model(make(actions=3, lstm_hidden_size=8), path)
    with pytest.raises(ConfigurationError, match="default settings"):
        export_model(make(lstm_hidden_size=8, lstm_kwargs={"bias": False}), path)
    assert not path.exists()


def test_the_controllers_state_holds_the_memory(tmp_path: Path) -> None:
    policy = export_model(make(lstm_hidden_size=8), tmp_path / "p.safetensors")
    run = [
        (signals, round(float(signals.batch_size)))
        for _, signals in random_run((), np.random.default_rng(2), 12)
    ]
    whole = DecisionEngine(policy, EngineConfig())
    wanted = [whole.decide(*chunk).batch_size for chunk in run]
    first = DecisionEngine(policy, EngineConfig())
    got = [first.decide(*chunk).batch_size for chunk in run[:6]]
    saved = json.loads(json.dumps(first.state_dict()))
    second = DecisionEngine(policy, EngineConfig())
    second.load_state_dict(saved)
    got += [second.decide(*chunk).batch_size for chunk in run[6:]]
    assert got == wanted
    assert second.state_dict() == whole.state_dict()

    lost = DecisionEngine(policy, EngineConfig())
    lost.load_state_dict(json.loads(json.dumps(saved), object_hook=_emptied))
    for chunk in run[6:]:
        lost.decide(*chunk)
    assert lost.state_dict()["policy"] != whole.state_dict()["policy"]
    assert lost.state_dict()["encoder"] == whole.state_dict()["encoder"]


def _emptied(part: dict[str, Any]) -> dict[str, Any]:
    """A packed array of the memory's 8 units, as at the start of a run."""
    return {**part, "data": [0.0] * 8} if part.get("shape") == [8] else part


class TestRecurrentPolicy(PolicyContract):
    def make_policy(self) -> RecurrentPolicy:
        policy = export_model(make(lstm_hidden_size=8, n_lstm_layers=2), self.folder / "p")
        assert isinstance(policy, RecurrentPolicy)
        return policy

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
