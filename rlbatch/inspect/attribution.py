"""How much each observation pushed a learned policy's decision: integrated gradients.

For an observation x, a baseline b and the log odds F of two actions (Sundararajan et al. 2017,
"Axiomatic Attribution for Deep Networks", equation 1)

    push_i = (x_i - b_i) * integral over a in [0, 1] of dF/dx_i (b + a (x - b)),

so that the pushes of all features add up to F(x) - F(b). The baseline is zero unless another is
given: features are scaled so that zero is neutral or unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.inspect.groups import PEOPLES, group_of
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network

Values = NDArray[np.float64]

TOLERANCE = 0.05
"""What the pushes may miss of the difference in log odds."""

_FEWEST, _MOST = 32, 8192  # points of the integral


@dataclass(frozen=True)
class Attribution:
    """Why a policy preferred one action to another.

    Attributes:
        chosen: Change of log2(batch size) with the highest probability.
        other: The one it is compared with: stay, or the runner-up where it stays.
        log_odds: ln(P(chosen) / P(other)) at the observation.
        neutral_log_odds: The same at the baseline.
        features: Push of each feature in log odds (natural logarithm); positive towards `chosen`.
    """

    chosen: float
    other: float
    log_odds: float
    neutral_log_odds: float
    features: Mapping[str, float]

    def groups(self) -> dict[str, float]:
        """Return the pushes summed over what people think in, in the order of `PEOPLES`."""
        sums = dict.fromkeys(PEOPLES, 0.0)
        for name, push in self.features.items():
            sums[group_of(name)] += push
        return sums


def attribute(
    policy: LearnedPolicy, observation: ArrayLike, baseline: ArrayLike | None = None
) -> Attribution:
    """Return how much each feature of an observation pushed the networks' favourite action.

    The log odds are those of the joined networks, before any floor or limit.

    Args:
        policy: Whose networks decided.
        observation: What they saw, shape (features,).
        baseline: What the pushes count from, shape (features,); None for zeros.

    Raises:
        ConfigurationError: The observation has another length or is not finite.
    """
    seen = np.asarray(observation, dtype=np.float64)
    if seen.shape != (OBSERVATION_SIZE,) or not np.isfinite(seen).all():
        raise ConfigurationError(
            f"Expected an observation of {OBSERVATION_SIZE} finite features, got shape "
            f"{seen.shape}. The log was written with another observation: use the rlbatch of "
            "that time."
        )
    chosen, other = _pair(policy, seen)
    start = np.zeros_like(seen) if baseline is None else np.asarray(baseline, dtype=np.float64)
    ends = _log_odds(policy, np.stack([start, seen]), chosen, other)[0]
    push = _pushes(policy, (start, seen), (chosen, other), float(ends[1] - ends[0]))
    return Attribution(
        chosen=policy.action_grid[chosen],
        other=policy.action_grid[other],
        log_odds=float(ends[1]),
        neutral_log_odds=float(ends[0]),
        features=dict(zip(OBSERVATION_NAMES, push.tolist(), strict=True)),
    )


def _pair(policy: LearnedPolicy, seen: Values) -> tuple[int, int]:
    """Return the favourite action, and stay, or the second where stay is the favourite."""
    logs = np.stack([_log_softmax(_forward(net, seen[None])[0]) for net in policy.members])
    order = np.argsort(-np.logaddexp.reduce(logs, axis=0)[0], kind="stable")
    chosen, stay = int(order[0]), policy.action_grid.index(0.0)
    return chosen, (stay if chosen != stay else int(order[min(1, len(order) - 1)]))


def _pushes(
    policy: LearnedPolicy, ends: tuple[Values, Values], pair: tuple[int, int], whole: float
) -> Values:
    """Integrate by the midpoint rule, with more points until the pushes add up."""
    count, (start, seen) = _FEWEST, ends
    while True:
        path = start + (np.arange(count)[:, None] + 0.5) / count * (seen - start)
        push = (seen - start) * _log_odds(policy, path, *pair)[1].mean(axis=0)
        missing = abs(float(push.sum()) - whole)
        if missing <= TOLERANCE or count >= _MOST:
            return push
        count *= 2


def _log_odds(
    policy: LearnedPolicy, inputs: Values, chosen: int, other: int
) -> tuple[Values, Values]:
    """Return the log odds, shape (n,), and their gradients, shape (n, features).

    The networks' probabilities are averaged, so P(a) = mean of P_m(a), and
    d ln P(a) / d logits_m = P_m(a) / sum of P(a) * (e_a - P_m).
    """
    runs = [_forward(net, inputs) for net in policy.members]
    logs = np.stack([_log_softmax(logits) for logits, _ in runs])  # (members, n, actions)
    total = np.logaddexp.reduce(logs, axis=0)
    probabilities = np.exp(logs)
    gradient = np.zeros_like(inputs)
    for member, (net, (_, hidden)) in enumerate(zip(policy.members, runs, strict=True)):
        back = np.zeros_like(logs[member])
        for action, sign in ((chosen, 1.0), (other, -1.0)):
            share = np.exp(logs[member, :, action] - total[:, action])[:, None]
            back -= sign * share * probabilities[member]
            back[:, action] += sign * share[:, 0]
        gradient += _backward(net, hidden, back)
    return total[:, chosen] - total[:, other], gradient


def _forward(net: Network, inputs: Values) -> tuple[Values, list[Values]]:
    """Return the logits and the hidden activations, in double precision."""
    *layers, last = net.policy
    hidden: list[Values] = []
    values = inputs
    for layer in layers:
        values = _dense(layer, values)
        values = np.tanh(values) if net.activation == "tanh" else np.maximum(values, 0.0)
        hidden.append(values)
    return _dense(last, values), hidden


def _backward(net: Network, hidden: list[Values], back: Values) -> Values:
    """Return the gradient of the inputs from that of the logits."""
    *layers, last = net.policy
    back = back @ last.weight.astype(np.float64)
    for layer, values in zip(reversed(layers), reversed(hidden), strict=True):
        slope = 1.0 - values**2 if net.activation == "tanh" else (values > 0.0)
        back = (back * slope) @ layer.weight.astype(np.float64)
    return back


def _dense(layer: Layer, values: Values) -> Values:
    return values @ layer.weight.T.astype(np.float64) + layer.bias


def _log_softmax(logits: Values) -> Values:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
