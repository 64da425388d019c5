"""Where the controller is trained: environments around real and simulated training runs.

Importing this package registers `rlbatch/BatchSize-v0`, `rlbatch/BatchSizeWallClock-v0` and
`rlbatch/BatchSizeQuadratic-v0` with Gymnasium, so that
`gymnasium.make("rlbatch.envs:rlbatch/BatchSize-v0")` works.
"""

from __future__ import annotations

from rlbatch.envs.task import Task, collate_samples, resolve_task, task_names

__all__ = ["Task", "collate_samples", "register", "resolve_task", "task_names"]

_ENVIRONMENTS: dict[str, tuple[str, dict[str, str], bool]] = {
    # id: entry point, keyword arguments, nondeterministic
    "rlbatch/BatchSize-v0": ("rlbatch.envs.batch_size_env:BatchSizeEnv", {}, False),
    # Wall time in the reward makes two episodes of one seed differ.
    "rlbatch/BatchSizeWallClock-v0": (
        "rlbatch.envs.batch_size_env:BatchSizeEnv",
        {"profile": "wall"},
        True,
    ),
    "rlbatch/BatchSizeQuadratic-v0": ("rlbatch.envs.simulator.environment:QuadraticEnv", {}, False),
}

_VECTOR_ENTRY_POINTS = {
    "rlbatch/BatchSizeQuadratic-v0": "rlbatch.envs.simulator.gym_vector_env:QuadraticGymVectorEnv",
}


def register() -> None:
    """Register the environments with Gymnasium, where it is installed."""
    try:
        import gymnasium
    except ImportError:
        return
    for name, (entry_point, arguments, nondeterministic) in _ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=entry_point,
                vector_entry_point=_VECTOR_ENTRY_POINTS.get(name),
                kwargs=dict(arguments),
                nondeterministic=nondeterministic,
            )


register()
