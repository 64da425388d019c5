"""What the tests of several frameworks steer their runs with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbatch.log.episode_log import read_episode
from rlbatch.policy import tools

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
class Follow:
    """Asks for the batch size that a function of the steps made returns."""

    decide_size: Callable[[int], int]
    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return ()

    def decide(self, observation: Any, signals: Any, state: Any) -> tuple[Any, Any]:
        size = self.decide_size(int(signals.total_steps))
        change = math.log2(size / float(signals.batch_size))
        return tools.decision(change, "follow"), state


def known_plan(folder: Path) -> tuple[str, float | str]:
    """Return the policy that decided, and how long it was told that the run is, by the log."""
    run = read_episode(folder).run
    return run["policy"], run["context"]["planned_samples"]
