"""What a policy file holds of a trained model, and a model that begins with one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rlbatch.agents.recipes import RECIPES
from rlbatch.agents.weights import export_policy, load_weights
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.policy.registry import pretrained_file
from rlbatch.testing import simple_signals
from tests.agents.tiny import HIDDEN_SIZE, TINY, untrained


def test_the_exported_policy_decides_like_the_trained_one(trained: Path) -> None:
    model = PPO.load(trained / "checkpoint.zip", device="cpu")
    policy = load_policy(trained / "policy.safetensors")
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (500, OBSERVATION_SIZE)).astype(np.float32)
    hidden = rng.uniform(-1, 1, (500, HIDDEN_SIZE)).astype(np.float32)
    decision, _ = policy.decide(seen, simple_signals(), policy.initial_state((500,)))
    actions, _ = model.predict(np.concatenate([seen, hidden], axis=1), deterministic=True)
    np.testing.assert_array_equal(decision.log2_change, np.asarray(TINY.actions)[actions])
    assert policy.card.recipe_hash == TINY.digest()


@pytest.mark.parametrize("near_base", [True, False])
def test_a_policy_stays_near_the_users_size_where_its_recipe_says_so(
    trained: Path, tmp_path: Path, near_base: bool
) -> None:
    model = PPO.load(trained / "checkpoint.zip", device="cpu")
    path = tmp_path / "policy.safetensors"
    export_policy(model, replace(TINY, near_base=near_base), path)
    assert load_policy(path).near_base is near_base


def test_the_recipes_limits_are_those_of_the_shipped_policies() -> None:
    for recipe, shipped in (("default", "default"), ("ordinary", "default"), ("epochs", "epochs")):
        policy = load_policy(pretrained_file(shipped))
        for name in ("goodput_slack", "noise_ceiling", "keeps_steps", "near_base"):
            assert getattr(RECIPES[recipe], name) == getattr(policy, name), (recipe, name)


def test_a_policy_has_the_floor_and_the_objective_of_its_recipe(
    trained: Path, tmp_path: Path
) -> None:
    model = PPO.load(trained / "checkpoint.zip", device="cpu")
    for changes in ({"goodput_slack": 0.5}, {"goodput_slack": None}):
        export_policy(model, replace(TINY, **changes), tmp_path / "policy.safetensors")
        policy = load_policy(tmp_path / "policy.safetensors")
        assert policy.goodput_slack == changes["goodput_slack"]
        assert policy.card.objectives == ("target",)
    export_policy(model, RECIPES["epochs"], tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    assert (policy.goodput_slack, policy.card.objectives) == (None, ("epochs",))


def test_the_exported_value_is_the_critics_at_the_mean_truth(trained: Path) -> None:
    model = PPO.load(trained / "checkpoint.zip", device="cpu")
    policy = load_policy(trained / "policy.safetensors")
    seen = np.random.default_rng(1).uniform(-1, 1, (50, OBSERVATION_SIZE)).astype(np.float32)
    mean = model.policy.get_buffer("privileged_mean")
    assert mean.abs().min() > 0
    features = torch.cat([torch.tensor(seen), mean.expand(50, HIDDEN_SIZE)], dim=1)
    with torch.no_grad():
        expected = model.policy.predict_values(features)[:, 0].numpy()
    decision, _ = policy.decide(seen, simple_signals(), policy.initial_state((50,)))
    np.testing.assert_allclose(np.asarray(decision.value), expected, atol=1e-5)


@pytest.mark.parametrize("privileged", [True, False])
def test_a_deployed_policy_is_trained_further_from_its_weights(
    trained: Path, privileged: bool
) -> None:
    """As it decides and judges, whether the critic will see the truth from then on or not."""
    policy = load_policy(trained / "policy.safetensors")
    model = untrained(privileged)
    load_weights(model, policy)
    rng = np.random.default_rng(2)
    seen = rng.uniform(-1, 1, (50, OBSERVATION_SIZE)).astype(np.float32)
    hidden = rng.uniform(-1, 1, (50, HIDDEN_SIZE * privileged)).astype(np.float32)
    features = torch.tensor(np.concatenate([seen, hidden], axis=1))
    with torch.no_grad():
        logits: Any = model.policy.get_distribution(features).distribution
        values = model.policy.predict_values(features)[:, 0].numpy()
    decision, _ = policy.decide(seen, simple_signals(), policy.initial_state((50,)))
    np.testing.assert_allclose(logits.probs.numpy(), np.asarray(decision.probabilities), atol=1e-5)
    np.testing.assert_allclose(values, np.asarray(decision.value), atol=1e-5)


def test_a_policy_is_not_trained_further_with_another_activation(trained: Path) -> None:
    policy = load_policy(trained / "policy.safetensors")
    policy = replace(policy, members=(replace(policy.members[0], activation="tanh"),))
    with pytest.raises(ConfigurationError, match="activation is to be the policy's, tanh"):
        load_weights(untrained(privileged=True), policy)
