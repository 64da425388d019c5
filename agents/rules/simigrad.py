"""SimiGrad: hold the cosine between half-batch gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Array, Signals


@dataclass(frozen=True)
class SimiGrad(tools.Stateless):
    """Grows the batch size where the half-batch gradients are less alike than wanted, else shrinks.

    After every optimizer step (Qin et al. 2021, "SimiGrad: fine-grained adaptive batching for large
    scale training using gradient similarity measurement"):

        cosine < target:  B <- max(B + 1, floor(1.1 B))
        cosine > target:  B <- max(1, min(B - 1, floor(0.9 B)))

    Here a decision stands for the chunk's n steps, so up to n such changes are made at once. They
    stop where the rule itself would turn round: E cos = 1 / (1 + 2 phi / B) puts the target at
    B (1 / cos - 1) / (1 / target - 1). At least one change is made, as in the source, and at most
    `max_log2_change`, because one noisy cosine now moves more than one step.

    Attributes:
        target: Cosine to hold, in (0, 1); 1/3 holds B at the noise scale phi.
        max_log2_change: Largest change of log2(batch size) of one decision.
    """

    target: float = 0.5
    max_log2_change: float = 1.0

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 < self.target < 1, "SimiGrad.target must be in (0, 1)", self.target)
        limit = self.max_log2_change
        tools.check(limit > 0, "SimiGrad.max_log2_change must be above 0", limit)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change that brings the cosine nearer to its target."""
        size = np.asarray(signals.batch_size, dtype=np.float64)
        steps = np.asarray(signals.steps, dtype=np.float64)
        cosine = np.asarray(signals.gradient_cosine, dtype=np.float64)
        bounded = np.clip(cosine, 1e-6, 1.0 - 1e-6)
        goal = np.abs(np.log2((1.0 / bounded - 1.0) / (1.0 / self.target - 1.0)))
        up = self._several(
            tools.change_to(np.maximum(size + 1, np.floor(1.1 * size)), size), steps, goal
        )
        smaller = np.maximum(np.minimum(size - 1, np.floor(0.9 * size)), 1.0)
        down = self._several(tools.change_to(size, smaller), steps, goal)
        change = np.where(cosine < self.target, up, np.where(cosine > self.target, -down, 0.0))
        return tools.decision(change, "simigrad", "cosine {:.3g}", cosine), state

    def _several(self, one: Array, steps: Array, goal: Array) -> Array:
        """Return one to `steps` changes of size `one`, not past the goal or the limit."""
        return np.minimum(np.clip(goal, one, np.maximum(steps, 1.0) * one), self.max_log2_change)
