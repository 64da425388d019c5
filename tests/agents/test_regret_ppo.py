"""The update: stable-baselines3's without the auxiliary loss, and the old formula's with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlbatch.agents.regret_ppo import RegretPPO
from rlbatch.envs.privileged import REGRET_SCALE
from rlbatch.observation import OBSERVATION_SIZE
from tests.agents.tiny import HIDDEN_SIZE, untrained


class Quiet(BaseCallback):
    def _on_step(self) -> bool:
        return True


def with_a_rollout(algorithm: type[PPO], *, privileged: bool = True, **settings: Any) -> Any:
    """A model that has made its first rollout and learned nothing from it."""
    model = untrained(privileged, algorithm, seed=4, n_epochs=2, **settings)
    _, callback = model._setup_learn(64, Quiet())
    env: VecEnv = model.get_env()
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    model.set_logger(Logger(None, []))
    return model


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("privileged", [True, False])
def test_without_the_auxiliary_loss_it_is_the_librarys_update(privileged: bool) -> None:
    ours, theirs = (
        with_a_rollout(algorithm, privileged=privileged, ent_coef=0.01)
        for algorithm in (RegretPPO, PPO)
    )
    before = weights(ours)
    for model in (ours, theirs):
        np.random.seed(3)  # of the minibatches
        model.train()
    after = weights(ours)
    assert any((after[name] != before[name]).any() for name in before)
    for name, value in weights(theirs).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-7)
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    for name in ("entropy_loss", "policy_gradient_loss", "value_loss", "clip_fraction"):
        # Sums in another order: of a policy's loss, what is left of terms of order one.
        found, wanted = logged[f"train/{name}"], expected[f"train/{name}"]
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert logged["train/explained_variance"] == expected["train/explained_variance"]


def test_the_gradient_is_that_of_a_regret_that_rides_on_the_entropy() -> None:
    """As it was written before: within the entropy, whose weight it is divided by."""
    entropy_weight, weight = 0.003, 2.0
    model = with_a_rollout(RegretPPO, ent_coef=entropy_weight)
    model.regret_weight = weight
    np.random.seed(0)
    (batch,) = list(model.rollout_buffer.get(16))[:1]

    def gradient(loss: Tensor) -> np.ndarray:
        model.policy.zero_grad()
        loss.backward()
        parts = [p.grad.flatten() for p in model.policy.parameters() if p.grad is not None]
        return torch.cat(parts).numpy().copy()

    terms, _ = model._terms(batch, 0.2)
    found = gradient(model.loss(terms))
    values, log_prob, entropy = model.policy.evaluate_actions(
        batch.observations, batch.actions.long().flatten()
    )
    probabilities = model.policy.get_distribution(batch.observations).distribution.probs
    regrets = REGRET_SCALE * batch.observations[:, -7:]
    riding = entropy - weight / entropy_weight * (probabilities * regrets).sum(dim=1)
    advantages = batch.advantages
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = (log_prob - batch.old_log_prob).exp()
    surrogate = torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    error = (batch.returns - values.flatten()).square().mean()
    expected = gradient(-surrogate + 0.5 * error - entropy_weight * riding.mean())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    model.regret_weight = 0.0
    assert np.abs(gradient(model.loss(model._terms(batch, 0.2)[0])) - found).max() > 1e-4


def test_the_entropy_that_is_logged_is_the_distributions(tmp_path: Path) -> None:
    model = with_a_rollout(RegretPPO, ent_coef=0.0, learning_rate=1e-12)
    model.regret_weight = 3.0
    seen = torch.as_tensor(model.rollout_buffer.observations.reshape(-1, model.policy.features_dim))
    with torch.no_grad():
        distribution = model.policy.get_distribution(seen).distribution
    model.train()
    logged = model.logger.name_to_value
    assert logged["train/entropy_loss"] == pytest.approx(-float(distribution.entropy().mean()))
    regret = (distribution.probs * REGRET_SCALE * seen[:, -7:]).sum(dim=1).mean()
    assert logged["train/regret_loss"] == pytest.approx(float(regret), rel=1e-5)
    assert logged["train/regret_loss"] > 0.0
    assert logged["train/regret_weight"] == 3.0


def test_a_policy_is_evaluated_as_the_library_does() -> None:
    policy = untrained(privileged=True).policy
    rng = np.random.default_rng(3)
    features = rng.uniform(-1, 1, (20, OBSERVATION_SIZE + HIDDEN_SIZE))
    seen, actions = (
        torch.tensor(features, dtype=torch.float32),
        torch.tensor(rng.integers(7, size=20)),
    )
    with torch.no_grad():
        *found, _ = policy.evaluate(seen, actions)
        expected = policy.evaluate_actions(seen, actions)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_logged_entropy_is_that_of_the_policy() -> None:
    model = with_a_rollout(RegretPPO, ent_coef=0.01, learning_rate=0.0)
    seen = torch.as_tensor(model.rollout_buffer.observations).flatten(0, 1)
    probabilities = model.policy.get_distribution(seen).distribution.probs.detach().double()
    expected = float(-(probabilities * probabilities.log()).sum(dim=1).mean())  # in nats
    model.train()
    assert model.logger.name_to_value["train/entropy"] == pytest.approx(expected, rel=1e-4)
