"""The runs that a stage of a recipe learns from: real ones, here or on a cluster, and simulated."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from rlbatch.agents.masking import MaskedGroups
from rlbatch.agents.ray_runs import open_servers
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.envs.budget_episode import begin_episode
from rlbatch.envs.live_vec_env import Episode, LiveVecEnv, SettingSource
from rlbatch.envs.mixed_vec_env import MixedVecEnv
from rlbatch.envs.planned_episode import PlannedEpisode, PlannedSampler
from rlbatch.envs.remote_vec_env import RemoteVecEnv
from rlbatch.envs.settings import SettingSampler
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import TaskPool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv


@dataclass(frozen=True)
class Files:
    """Where a training, or a member's part of it, writes, what it reads, and where it runs.

    Attributes:
        out: Folder of the checkpoint, TensorBoard's events and the policy.
        pool: File of simulated tasks.
        curves: Folder of learning curves.
        cluster: Address of a Ray cluster for the real runs; None for this machine.
    """

    out: Path
    pool: Path
    curves: Path
    cluster: str | None = None


@contextmanager
def open_runs(recipe: Recipe, stage: Stage, seed: int, files: Files) -> Generator[VecEnv]:
    """Run a block with a stage's runs, real and simulated, as one vector environment.

    Args:
        recipe: Of the training.
        stage: Says how many there are.
        seed: Of what is drawn.
        files: Of the training.

    Raises:
        ConfigurationError: There is no cluster at the address.
    """
    parts: list[VecEnv] = []
    with ExitStack() as stack:
        if stage.real:
            start, room = stack.enter_context(open_servers(files.cluster))
            workers = min(room, stage.real)
            shares = [len(share) for share in np.array_split(np.arange(stage.real), workers)]
            source = partial(_source, files.curves, recipe)
            if files.cluster is not None:  # the curves are here, and are sent along
                source = partial(_given, source())
            parts += [
                RemoteVecEnv(partial(_live_env, source, recipe, share, seed + i), start)
                for i, share in enumerate(shares)
            ]
        if stage.simulated:
            parts.append(_simulated_env(recipe, stage, seed, files.pool))
        env: VecEnv = MixedVecEnv(parts)
        stack.callback(env.close)
        yield MaskedGroups(env, recipe.hidden) if recipe.hidden else env


def _source(curves: Path, recipe: Recipe) -> SettingSource:
    """Return what draws the settings of real runs."""
    if recipe.objective == "epochs":
        return PlannedSampler(curves, recipe.tasks, known_share=recipe.known_share)
    return SettingSampler(
        curves,
        recipe.tasks,
        known_share=recipe.known_share,
        budget_share=recipe.budget_share,
        mixed_share=recipe.mixed_share,
        plan_shares=recipe.plan_shares,
        user_share=recipe.user_share,
    )


def _given(source: SettingSource) -> SettingSource:
    return source


def _live_env(
    source: Callable[[], SettingSource], recipe: Recipe, count: int, seed: int, crashes: int
) -> VecEnv:
    return LiveVecEnv(
        source(),
        count,
        seed + 500 * crashes,
        recipe.actions,
        make=partial(_begin, recipe),
        privileged=recipe.privileged_critic,
    )


def _begin(recipe: Recipe, setting: Any) -> Episode:
    """Begin a real run, measured as densely as the recipe says."""
    begin = PlannedEpisode if recipe.objective == "epochs" else begin_episode
    return begin(replace(setting, noise_rate=recipe.noise_rate))


def _simulated_env(recipe: Recipe, stage: Stage, seed: int, pool: Path) -> VecEnv:
    return QuadraticVecEnv(
        TaskPool.load(pool),
        stage.simulated,
        seed,
        recipe.actions,
        privileged=recipe.privileged_critic,
        with_regrets=not stage.real,  # the stages before have learned more than a fixed size tells
        make=partial(QuadraticEpisodes, noise_rate=recipe.noise_rate),
    )
