"""A policy file of a model that stable-baselines3 trained decides as the model itself does."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rlbatch.agents.export import export_model
from rlbatch.agents.weights import MODULES, export_policy
from rlbatch.cli import main
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.spaces import observation_space
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.policy.network import ACTIVATIONS
from rlbatch.testing import simple_signals
from tests.agents.tiny import HIDDEN_SIZE, TINY


class Still(gymnasium.Env[Any, Any]):
    """Spaces only."""

    def __init__(self, size: int = OBSERVATION_SIZE, actions: int = 7, start: int = 0) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(actions, start=start)

    def reset(self, **_: Any) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def make(algorithm: Any, env: Still | None = None, **keywords: Any) -> Any:
    """A model with weights that tell actions apart, which those of a fresh PPO hardly do."""
    model = algorithm(
        "MlpPolicy", env or Still(), device="cpu", seed=3, policy_kwargs=keywords or None
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def assert_decides_alike(
    model: Any, path: Path, actions: tuple[float, ...] = DEFAULT_ACTIONS, hidden: int = 0
) -> None:
    rng = np.random.default_rng(17)
    seen = rng.uniform(-1, 1, (10_000, OBSERVATION_SIZE + hidden)).astype(np.float32)
    wanted, _ = model.predict(seen, deterministic=True)
    policy = load_policy(path)
    made, _ = policy.decide(
        seen[:, :OBSERVATION_SIZE], simple_signals(), policy.initial_state((len(seen),))
    )
    assert len(np.unique(wanted)) > 1
    same = np.asarray(made.log2_change) == np.asarray(actions)[wanted]
    assert same.sum() >= len(seen) - 1  # a tie in float32


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"activation_fn": nn.ReLU},
        {"activation_fn": nn.Tanh, "net_arch": [33]},
        {"net_arch": [16, 48, 20]},
        {"net_arch": []},
    ],
    ids=str,
)
def test_a_zip_becomes_a_policy_file(algorithm: Any, keywords: Any, tmp_path: Path) -> None:
    model = make(algorithm, **keywords)
    model.save(tmp_path / "model.zip")
    export_model(tmp_path / "model.zip", tmp_path / "policy.safetensors")
    assert_decides_alike(model, tmp_path / "policy.safetensors")


@pytest.mark.parametrize("name", MODULES)
def test_every_activation_is_torchs(name: str, tmp_path: Path) -> None:
    inputs = torch.linspace(-12, 12, 2001)
    np.testing.assert_allclose(
        ACTIVATIONS[name](inputs.numpy()), MODULES[name]()(inputs).numpy(), atol=2e-6
    )
    assert ACTIVATIONS[name](inputs.numpy()).dtype == np.float32
    model = make(PPO, activation_fn=MODULES[name])
    export_model(model, tmp_path / "policy.safetensors")  # from memory
    assert_decides_alike(model, tmp_path / "policy.safetensors")


def test_a_net_that_hardly_learned_is_not_refused_for_ties(tmp_path: Path) -> None:
    """Its outputs differ by about what single precision loses in their logarithms."""
    model = make(PPO, activation_fn=nn.ReLU, net_arch=[17])
    with torch.no_grad():
        model.policy.action_net.weight.mul_(1e-5)
        model.policy.action_net.bias.zero_()
    path = tmp_path / "policy.safetensors"
    export_model(model, path)
    rng = np.random.default_rng(17)
    seen = rng.uniform(-1, 1, (10_000, OBSERVATION_SIZE)).astype(np.float32)
    network = load_policy(path).members[0]
    logits = model.policy.action_net(
        model.policy.mlp_extractor.policy_net(torch.tensor(seen))
    ).detach()
    assert network.forward("policy", seen) == pytest.approx(logits.numpy(), abs=1e-7)


def test_each_net_of_its_own_size_and_the_critics_value(tmp_path: Path) -> None:
    model = make(PPO, net_arch={"pi": [12], "vf": [40, 8]})
    policy = export_model(model, tmp_path / "policy.safetensors")
    seen = np.random.default_rng(0).uniform(-1, 1, (64, OBSERVATION_SIZE)).astype(np.float32)
    made, _ = policy.decide(seen, simple_signals(), policy.initial_state((64,)))
    with torch.no_grad():
        values = model.policy.predict_values(torch.tensor(seen))[:, 0].numpy()
    np.testing.assert_allclose(np.asarray(made.value), values, rtol=1e-4, atol=1e-4)


def test_the_value_of_a_dqn_is_the_mean_of_its_action_values(tmp_path: Path) -> None:
    model = make(DQN)
    policy = export_model(model, tmp_path / "policy.safetensors")
    seen = np.random.default_rng(0).uniform(-1, 1, (64, OBSERVATION_SIZE)).astype(np.float32)
    made, _ = policy.decide(seen, simple_signals(), policy.initial_state((64,)))
    with torch.no_grad():
        values = model.q_net(torch.tensor(seen)).mean(dim=1).numpy()
    np.testing.assert_allclose(np.asarray(made.value), values, rtol=1e-4, atol=1e-4)


def test_a_grid_of_ones_own_in_any_order(tmp_path: Path) -> None:
    model = make(PPO, Still(actions=3))
    model.save(tmp_path / "model.zip")
    target = tmp_path / "policy.safetensors"
    with pytest.raises(ConfigurationError, match="3 actions and the action grid 7"):
        export_model(tmp_path / "model.zip", target)
    with pytest.raises(ConfigurationError, match=r"0 \(stay\)"):
        export_model(tmp_path / "model.zip", target, actions=(1.0, 2.0, 3.0))
    grid = (0.0, 0.5, -0.5)
    policy = export_model(tmp_path / "model.zip", target, actions=grid)
    assert policy.action_grid == (-0.5, 0.0, 0.5)
    assert_decides_alike(model, target, grid)


def test_an_interrupted_trainings_checkpoint_is_exported(trained: Path, tmp_path: Path) -> None:
    export_model(trained / "checkpoint.zip", tmp_path / "policy.safetensors")
    model: Any = PPO.load(trained / "checkpoint.zip", device="cpu")
    # So short a training may take one action always: its probabilities say more.
    width = OBSERVATION_SIZE + HIDDEN_SIZE
    seen = np.random.default_rng(17).uniform(-1, 1, (10_000, width)).astype(np.float32)
    with torch.no_grad():
        wanted = model.policy.get_distribution(torch.tensor(seen)).distribution.probs.numpy()
    policy = load_policy(tmp_path / "policy.safetensors")
    start = policy.initial_state((len(seen),))
    made, _ = policy.decide(seen[:, :OBSERVATION_SIZE], simple_signals(), start)
    np.testing.assert_allclose(np.asarray(made.probabilities), wanted, atol=1e-6)
    assert np.ptp(wanted, axis=0).min() > 1e-3
    with pytest.raises(ConfigurationError, match="no recipe of this rlbatch"):
        export_model(trained / "checkpoint.zip", tmp_path / "other.safetensors", limits=True)


class Doubling(BaseFeaturesExtractor):
    """Something in front of the layers that the weights do not show."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, OBSERVATION_SIZE)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return 2.0 * seen


class Spaces(Still):
    """Spaces of any kind."""

    def __init__(self, observation: Any = None, action: Any = None) -> None:
        super().__init__()
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space


def normalised(algorithm: Any, **keywords: Any) -> Any:
    """A model whose observations have the mean 0 and the variance 1, as its zip does not say."""
    envs = VecNormalize(DummyVecEnv([Still]), norm_obs=True)
    model = algorithm("MlpPolicy", envs, device="cpu", seed=0, **keywords)
    return model.learn(64)


def earlier() -> Any:
    space = observation_space()
    vars(space)["rlbatch_schema"] -= 1
    return make(PPO, Spaces(space))


REFUSED: dict[str, tuple[Any, str]] = {
    "normalised": (lambda: normalised(PPO, n_steps=32, batch_size=32), r"beyond \[-1, 1\]"),
    "normalised, of DQN": (lambda: normalised(DQN, learning_starts=8), r"beyond \[-1, 1\]"),
    "scaled": (
        lambda: make(PPO, Spaces(spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,)))),
        r"beyond \[-1, 1\], up to inf",
    ),
    "earlier observation": (earlier, "version 2 of the observation"),
    "several actions": (
        lambda: make(PPO, Spaces(action=spaces.MultiDiscrete([7, 3]))),
        "actions of a space MultiDiscrete",
    ),
    "binary actions": (
        lambda: make(A2C, Spaces(action=spaces.MultiBinary(7))),
        "actions of a space MultiBinary",
    ),
    "continuous actions": (
        lambda: make(PPO, Spaces(action=spaces.Box(-1, 1, (7,)))),
        "actions of a space Box",
    ),
    "numbers as observations": (
        lambda: make(PPO, Spaces(spaces.Discrete(OBSERVATION_SIZE))),
        "observations of a space Discrete",
    ),
    "activation": (lambda: make(PPO, activation_fn=nn.PReLU), "PReLU"),
    "settings of an activation": (
        lambda: make(PPO, activation_fn=lambda: nn.LeakyReLU(0.3)),
        "plain class|without settings",
    ),
    "extractor": (lambda: make(PPO, features_extractor_class=Doubling), "features extractor"),
    "observation": (lambda: make(PPO, Still(size=9)), "takes 9 numbers"),
    "first action": (lambda: make(PPO, Still(start=2)), "begin at 2"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("saved", [True, False])
def test_what_a_policy_file_cannot_hold_is_refused(case: str, saved: bool, tmp_path: Path) -> None:
    maker, message = REFUSED[case]
    source = maker()
    if saved:
        source.save(tmp_path / "model.zip")
        source = tmp_path / "model.zip"
    with pytest.raises((ConfigurationError, PolicyFileError), match=message):
        export_model(source, tmp_path / "policy.safetensors")
    assert not (tmp_path / "policy.safetensors").exists()


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("name", ["BatchSize-v0", "BatchSizeQuadratic-v0"])
def test_the_actions_are_those_of_the_models_environment(
    name: str, saved: bool, tmp_path: Path
) -> None:
    actions = (0.25, -0.5, 0.0, 0.5, -0.25, 1.0, -1.0)  # as many as by default
    model = PPO("MlpPolicy", gymnasium.make(f"rlbatch/{name}", actions=actions), device="cpu")
    model.save(tmp_path / "model.zip")
    source = tmp_path / "model.zip" if saved else model

    policy = export_model(source, tmp_path / "policy.safetensors")

    assert policy.action_grid == tuple(sorted(actions))
    assert_decides_alike(model, tmp_path / "policy.safetensors", actions)
    with pytest.raises(ConfigurationError, match="was trained with the action grid"):
        export_model(source, tmp_path / "other.safetensors", actions=DEFAULT_ACTIONS)


def test_a_normalised_reward_is_no_reason_to_refuse(tmp_path: Path) -> None:
    envs = VecNormalize(DummyVecEnv([Still]), norm_obs=False)
    model = PPO("MlpPolicy", envs, n_steps=32, batch_size=32, device="cpu").learn(32)
    model.save(tmp_path / "model.zip")

    export_model(tmp_path / "model.zip", tmp_path / "policy.safetensors")
    export_model(model, tmp_path / "again.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make(PPO)
    with torch.no_grad():
        model.policy.action_net.bias[0] = float("nan")
    with pytest.raises(ConfigurationError, match="not finite"):
        export_model(model, tmp_path / "policy.safetensors")


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_zip_is_run(tmp_path: Path) -> None:
    model = make(PPO)
    model.verbose = Trap(tmp_path / "sprung")
    model.save(tmp_path / "model.zip")
    export_model(tmp_path / "model.zip", tmp_path / "policy.safetensors")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(model.verbose))  # the trap does work
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short", b"no zip at all"])
def test_files_that_are_no_model_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(PolicyFileError, match=r"no such file|expected a zip"):
        export_model(tmp_path / "model.zip", tmp_path / "policy.safetensors")


def test_a_recipes_export_takes_the_models_own_activation(tmp_path: Path) -> None:
    model = make(PPO, activation_fn=nn.Tanh)
    export_policy(model, TINY, tmp_path / "policy.safetensors")  # whose own is relu
    assert load_policy(tmp_path / "policy.safetensors").members[0].activation == "tanh"
    with pytest.raises(ConfigurationError, match="Expected an actor-critic"):
        export_policy(make(DQN), TINY, tmp_path / "policy.safetensors")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(DQN).save(tmp_path / "model.zip")
    target = tmp_path / "policy.safetensors"
    command = ["export", str(tmp_path / "model.zip"), "-o", str(target)]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{target}\n"
    assert "-3, -2, -1, 0, +1, +2, +3" in shown.err
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "model.zip"), "--out", str(tmp_path / "policy.pt")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
