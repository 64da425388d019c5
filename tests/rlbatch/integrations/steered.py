"""What the tests of several frameworks steer their runs with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.log.episode_log import read_episode
from rlbatch.policy import tools
from rlbatch.testing.training_job import Follow

__all__ = ["TWO_STEP_CHUNKS", "ByBits", "Follow", "known_plan"]

TWO_STEP_CHUNKS: dict[str, Any] = {
    "min_batch_size": 1,
    "first_chunk_steps": 2,
    "min_chunk_steps": 2,
    "max_chunk_steps": 2,
    "on_error": "raise",
    "cost": "samples",
    "guard": None,
    "lr_coupling": "none",
}
"""Settings of a controller that decides after every second step and does nothing else."""


@dataclass(frozen=True)
class ByBits:
    """Decides by the exact bits of what it sees: a run that differs in one goes another way."""

    needs_gradient_noise = True
    changes = (-1.0, -0.5, 0.0, 0.5, 1.0)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the digest of nothing."""
        return np.zeros(4, dtype=np.int64)

    def decide(self, observation: Any, signals: Any, state: Any) -> tuple[Any, Any]:
        """Return a change drawn by the digest of everything so far."""
        values = [getattr(signals, field.name) for field in fields(signals)[1:]]
        digest = hashlib.sha256(np.asarray(state).tobytes())
        for value in (observation, *values):
            digest.update(np.asarray(value, dtype=np.float64).tobytes())
        after = np.frombuffer(digest.digest(), dtype=np.int64).copy()
        return tools.decision(self.changes[int(after[0] % 5)], "bits"), after


def known_plan(folder: Path) -> tuple[str, float | str]:
    """Return the policy that decided, and how long it was told that the run is, by the log."""
    run = read_episode(folder).run
    return run["policy"], run["context"]["planned_samples"]
