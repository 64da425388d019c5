"""What the tests of several frameworks steer their runs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlbatch.log.episode_log import read_episode
from rlbatch.testing.actuator_contract import Follow

__all__ = ["TWO_STEP_CHUNKS", "Follow", "known_plan"]

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


def known_plan(folder: Path) -> tuple[str, float | str]:
    """Return the policy that decided, and how long it was told that the run is, by the log."""
    run = read_episode(folder).run
    return run["policy"], run["context"]["planned_samples"]
