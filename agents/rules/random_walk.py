"""Random changes: what a policy must beat to have learnt anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class RandomWalk:
    """Draws evenly from the whole powers of two that stay within the context's limits.

    Attributes:
        seed: Start of the random stream; each run of an array has its own.
        max_log2_change: Largest change of log2(batch size) either way.
    """

    seed: int = 0
    max_log2_change: int = 1

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        tools.check(self.seed >= 0, "RandomWalk.seed must not be negative", self.seed)
        limit = self.max_log2_change
        tools.check(limit >= 1, "RandomWalk.max_log2_change must be at least 1", limit)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (seed, decisions so far), each of the given shape."""
        return tools.seeds(self.seed, shape), np.zeros(shape, dtype=np.int64)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return a random legal change; staying is always legal."""
        seed, counter = state
        grid = np.arange(-self.max_log2_change, self.max_log2_change + 1.0)
        size = np.log2(signals.batch_size)[..., None] + grid
        low = np.log2(signals.context.min_batch_size)[..., None] - tools.SAME_SIZE
        high = np.log2(signals.context.max_batch_size)[..., None] + tools.SAME_SIZE
        legal = ((size >= low) & (size <= high)) | (grid == 0.0)
        rank = np.cumsum(legal, axis=-1)
        wanted = np.floor(tools.uniform(seed, counter) * rank[..., -1]) + 1.0
        change = grid[np.argmax(legal & (rank == wanted[..., None]), axis=-1)]
        return tools.decision(change, "random"), (seed, np.asarray(counter) + 1)
