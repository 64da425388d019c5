"""The gradient that is written out: autograd's, for each kind of policy it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlbatch.agents import actor_critic_gradient
from rlbatch.agents.actor_critic_gradient import ActorCriticGradient, fits
from rlbatch.agents.critic import PrivilegedCriticPolicy
from rlbatch.agents.regret_ppo import RegretPPO
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from tests.agents.test_regret_ppo import Quiet

ACTIONS = (-1.0, 0.0, 1.0)


def with_a_rollout(privileged: bool, activation: type[nn.Module]) -> Any:
    env = QuadraticVecEnv(make_pool(8, 0), 3, 0, ACTIONS, privileged=privileged)
    model = RegretPPO(
        PrivilegedCriticPolicy if privileged else "MlpPolicy",
        env,
        n_steps=8,
        batch_size=24,
        ent_coef=0.02,
        device="cpu",
        seed=1,
        policy_kwargs={"net_arch": {"pi": [16, 12], "vf": [20, 8]}, "activation_fn": activation},
    )
    _, callback = model._setup_learn(64, Quiet())
    venv: VecEnv = env
    model.collect_rollouts(venv, callback, model.rollout_buffer, model.n_steps)
    with torch.no_grad():  # so that ratios are not all 1, and some are clipped
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("privileged", [True, False])
def test_gradients_and_figures_are_those_of_autograd(
    privileged: bool, activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_critic_gradient, "_BLOCK", 7)  # the last one is smaller
    model = with_a_rollout(privileged, activation)
    model.regret_weight = 1.5 * privileged
    assert fits(model.policy)
    (batch,) = model.rollout_buffer.get(24)
    clip = 0.15
    expected = model._gradient(batch, clip)
    theirs = [p.grad.numpy().copy() for p in model.policy.parameters()]
    found = model._gradient_written_out(batch, clip, ActorCriticGradient(model.policy))
    ours = [p.grad.numpy() for p in model.policy.parameters()]
    assert 0.0 < expected["clip_fraction"] < 1.0
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(other).max() > 0.0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max())


def test_other_policies_are_left_to_pytorch() -> None:
    assert not fits(with_a_rollout(False, nn.SiLU).policy)
