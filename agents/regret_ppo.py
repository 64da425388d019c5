"""PPO's update with the auxiliary regret loss as a term of its own.

The loss of a minibatch is, with advantages A normalised over it,

    -mean(min(r A, clip(r, 1 - c, 1 + c) A)) + v mean((R - V)^2) - e mean(H) + w mean(E[regret])

(Schulman et al. 2017, "Proximal policy optimization algorithms", arXiv:1707.06347, equations 7 and
9; the last term is not theirs). It is that of stable-baselines3 where w is 0.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional

from rlbatch.agents.actor_critic_gradient import ActorCriticGradient, Minibatch, Weights, fits
from rlbatch.agents.critic import PrivilegedCriticPolicy

_TERMS = ("policy_gradient_loss", "value_loss", "entropy_loss", "regret_loss")


class LossTerms(NamedTuple):
    """The terms of a minibatch's loss, each a scalar and without its weight.

    Attributes:
        policy: Clipped surrogate.
        value: Mean squared error of the values.
        entropy: Minus the mean entropy of the policy, in nats.
        regret: Mean regret, in log2 of cost, that the policy's actions are expected to have.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor
    regret: Tensor


class RegretPPO(PPO):
    """Unlike an advantage, a regret is known of every action and without noise.

    But it is only what a size would cost from the start, and it rewards no looking around.

    Attributes:
        regret_weight: Of the auxiliary loss. It needs a `PrivilegedCriticPolicy`, whose
            observations hold the regrets.
    """

    regret_weight: float = 0.0

    def train(self) -> None:
        """Update the networks with the rollout at hand, and log every term by its own name."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip: float = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        figures: dict[str, list[float]] = defaultdict(list)
        policy: Any = self.policy
        written_out = ActorCriticGradient(policy) if fits(policy) else None
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                if written_out is None:
                    found = self._gradient(batch, clip)
                else:
                    found = self._gradient_written_out(batch, clip, written_out)
                for name, value in found.items():
                    figures[name].append(value)
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
        for name, values in figures.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/entropy", -float(np.mean(figures["entropy_loss"])))
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/clip_range", clip)
        self.logger.record("train/regret_weight", self.regret_weight)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _gradient(self, batch: Any, clip: float) -> dict[str, float]:
        """Set the gradients by PyTorch; return the loss, its terms and two figures of the ratio."""
        terms, ratio = self._terms(batch, clip)
        loss = self.loss(terms)
        self.policy.optimizer.zero_grad()
        loss.backward()
        found = {name: term.item() for name, term in zip(_TERMS, terms, strict=True)}
        return found | {
            "loss": loss.item(),
            "clip_fraction": ((ratio - 1.0).abs() > clip).float().mean().item(),
            # The estimator k3 of http://joschu.net/blog/kl-approx.html.
            "approx_kl": (ratio - 1.0 - ratio.log()).mean().item(),
        }

    def _gradient_written_out(
        self, batch: Any, clip: float, gradient: ActorCriticGradient
    ) -> dict[str, float]:
        """Return `_gradient`, in a fraction of the time."""
        advantages = batch.advantages.numpy()
        if len(advantages) > 1:
            spread = np.float32(advantages.std(ddof=1) + 1e-8)
            advantages = (advantages - advantages.mean()) / spread
        minibatch = Minibatch(
            batch.observations.numpy(),
            batch.actions.long().flatten().numpy(),
            advantages,
            batch.returns.numpy(),
            batch.old_log_prob.numpy(),
        )
        value = float(self.vf_coef)
        found = gradient(minibatch, Weights(clip, self.ent_coef, value, self.regret_weight))
        weighted = self.loss(LossTerms(*(found[name] for name in _TERMS)))  # type: ignore[arg-type]
        return found | {"loss": float(weighted)}

    def loss(self, terms: LossTerms) -> Tensor:
        """Return the weighted sum of the terms."""
        loss = terms.policy + self.ent_coef * terms.entropy + self.vf_coef * terms.value
        return loss + self.regret_weight * terms.regret if self.regret_weight else loss

    def _terms(self, batch: Any, clip: float) -> tuple[LossTerms, Tensor]:
        """Return a minibatch's terms, and the ratios of new to old probabilities."""
        policy: Any = self.policy
        actions = batch.actions.long().flatten()
        if isinstance(policy, PrivilegedCriticPolicy):
            values, log_prob, entropy, regret = policy.evaluate(batch.observations, actions)
        else:
            values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions)
            regret = torch.zeros_like(entropy)
        advantages = batch.advantages
        if len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = torch.exp(log_prob - batch.old_log_prob)
        clipped = advantages * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
        terms = LossTerms(
            policy=-torch.min(advantages * ratio, clipped).mean(),
            value=functional.mse_loss(batch.returns, values.flatten()),
            entropy=-entropy.mean(),
            regret=regret.mean(),
        )
        return terms, ratio.detach()
