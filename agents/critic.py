"""An actor-critic whose critic sees more than its actor.

Observations are the policy's own features, followed by privileged information
(`rlbatch.envs.privileged`): what only the environment knows, and the regret of each action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from rlbatch.envs.privileged import PRIVILEGED_SIZE, REGRET_SCALE
from rlbatch.observation import OBSERVATION_SIZE

_FIRST = "mlp_extractor.value_net.0"
_MEAN = "privileged_mean"


class PrivilegedCriticPolicy(ActorCriticPolicy):
    """The actor's net sees the policy's own features, the critic's all of them."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """Build the two nets; the mean of the hidden features is kept for `deployable`."""
        super().__init__(*args, **keywords)
        self.register_buffer(_MEAN, torch.zeros(self.features_dim - OBSERVATION_SIZE))

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _SplitExtractor(
            self.features_dim, self.net_arch, self.activation_fn, self.device
        )

    def note(self, observations: NDArray[np.float32]) -> None:
        """Take the observations of a rollout, shape (..., features), into the mean."""
        hidden = observations[..., OBSERVATION_SIZE:]
        mean = hidden.reshape(-1, hidden.shape[-1]).mean(axis=0)
        self.get_buffer(_MEAN).copy_(torch.as_tensor(mean))

    def evaluate(
        self, observations: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `evaluate_actions` does, and the regret to be expected of the policy.

        Args:
            observations: Shape (n, features).
            actions: Those taken, shape (n,).

        Returns:
            Values (n, 1), log-probabilities (n,), entropies in nats (n,), and expected regrets in
            log2 of cost (n,).
        """
        features: Any = self.extract_features(observations)
        distribution: Any = self._get_action_dist_from_latent(
            self.mlp_extractor.forward_actor(features)
        )
        values = self.value_net(self.mlp_extractor.forward_critic(features))
        regret = (distribution.distribution.probs * known_regrets(features)).sum(dim=-1)
        return values, distribution.log_prob(actions), distribution.entropy(), regret


class _SplitExtractor(MlpExtractor):
    """Two separate nets, of which the actor's sees only the first features."""

    def __init__(
        self, feature_dim: int, net_arch: Any, activation_fn: type[nn.Module], device: Any
    ) -> None:
        super().__init__(OBSERVATION_SIZE, {"pi": net_arch["pi"]}, activation_fn, device)
        privileged = MlpExtractor(feature_dim, {"vf": net_arch["vf"]}, activation_fn, device)
        self.value_net, self.latent_dim_vf = privileged.value_net, privileged.latent_dim_vf

    def forward_actor(self, features: Tensor) -> Tensor:
        """Return what the action head sees."""
        return self.policy_net(features[..., :OBSERVATION_SIZE])


def known_regrets(features: Any) -> Any:
    """Return the regrets, in log2, that are part of observations of shape (..., features)."""
    return REGRET_SCALE * features[..., OBSERVATION_SIZE + PRIVILEGED_SIZE :]


def deployable(parameters: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return parameters of nets that see the policy's own features only.

    The truth is replaced by its mean in training. That leaves the critic a rough estimate, which is
    shown beside a decision and decides nothing.

    Args:
        parameters: Of an `PrivilegedCriticPolicy` or an ordinary one, which is returned as it is.
    """
    if _MEAN not in parameters:
        return parameters
    kept = {name: value for name, value in parameters.items() if name != _MEAN}
    weight = kept[f"{_FIRST}.weight"]
    shift = weight[:, OBSERVATION_SIZE:] @ parameters[_MEAN]
    kept[f"{_FIRST}.bias"] = (kept[f"{_FIRST}.bias"] + shift).astype(np.float32)
    kept[f"{_FIRST}.weight"] = weight[:, :OBSERVATION_SIZE]
    return kept


def privileged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an ordinary policy for one whose critic sees the truth: not yet."""
    first = weights[f"{_FIRST}.weight"]
    hidden = PRIVILEGED_SIZE + len(weights["action_net.bias"])
    zeros = torch.zeros(len(first), hidden, dtype=first.dtype)
    return {
        **weights,
        f"{_FIRST}.weight": torch.cat([first, zeros], dim=1),
        _MEAN: torch.zeros(hidden),
    }
