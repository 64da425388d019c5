"""Trains a controller with PPO: simulated runs first, then simulated and real runs together.

Stable-Baselines3's zip is a checkpoint of the training only (loading one runs code in it); what is
deployed is the policy file that `rlbatch.agents.weights` writes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from rlbatch.agents.critic import PrivilegedCriticPolicy
from rlbatch.agents.imitation import Report, held, imitate
from rlbatch.agents.progress import CHECKPOINT, PROGRESS, Progress, position, save
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.agents.regret_ppo import RegretPPO
from rlbatch.agents.side_by_side import train_side_by_side
from rlbatch.agents.stage_runs import Files, open_runs
from rlbatch.agents.weights import MODULES, export_policy, load_weights
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.threads import use_one_thread
from rlbatch.errors import ConfigurationError
from rlbatch.files import replacing
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import join

_POLICY, _POOL = "policy.safetensors", "pool.npz"


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    curves: Path | None = None,
    start_from: Path | None = None,
    report: Report | None = None,
    device: str = "auto",
    cluster: str | None = None,
) -> Path:
    """Train by a recipe and return the path of the policy file.

    A checkpoint is written after every rollout; a training stopped at any moment and resumed loses
    at most one, or the regression that its stage begins with.

    Args:
        recipe: What to do.
        out: Folder of the checkpoint, TensorBoard events and the policy.
        resume: Continue from the folder's checkpoint.
        curves: Folder of learning curves (rlbatch curves); needed by stages with real runs.
        start_from: Checkpoint or policy file whose weights to begin with.
        report: Called after every rollout with its figures.
        device: Where the networks are: `cpu`, `cuda`, or `auto`, a GPU if there is one. The runs
            themselves are NumPy's, on the CPU.
        cluster: Address of a Ray cluster for the real runs, as for `open_executor`; None takes
            this machine's cores. With as many of one as of the other the result is the same.

    Raises:
        ConfigurationError: The folder holds another training, there is nothing to resume, the
            curves are missing, or the device is not there.
    """
    _require_device(device)
    if start_from is not None and not start_from.is_file():
        raise ConfigurationError(f"No policy file or checkpoint at {start_from}. Check the path.")
    if curves is None and recipe.has_real_runs:
        raise ConfigurationError(
            "This recipe trains on real tasks and needs their learning curves. Make them with "
            "rlbatch curves --out DIR and pass --curves DIR."
        )
    use_one_thread()
    out.mkdir(parents=True, exist_ok=True)
    before, done = position(recipe, out, resume)
    if any(stage.simulated for stage in recipe.stages):
        _make_pool(recipe, out / _POOL)
    files = Files(out, out / _POOL, curves or out, cluster)  # curves are for real runs only
    for index in range(before, len(recipe.stages) - (recipe.members > 1)):
        source = out / CHECKPOINT if index or done else start_from
        _train_stage(recipe, files, index, 0, done, source, device, report)
        done = 0
    if recipe.members > 1:
        _train_members(recipe, files, device, report)
    return out / _POLICY


def _train_members(recipe: Recipe, files: Files, device: str, report: Report | None) -> None:
    """Train the members that are missing, and join all."""
    folders = [files.out / f"member{number}" for number in range(recipe.members)]
    train_side_by_side(
        {
            number: partial(_train_member, recipe, replace(files, out=folder), number, device)
            for number, folder in enumerate(folders)
            if not (folder / _POLICY).exists()
        },
        report,
    )
    joined = join([load_policy(folder / _POLICY) for folder in folders])
    save_policy(files.out / _POLICY, joined)


def _train_member(
    recipe: Recipe, files: Files, number: int, device: str, report: Report | None
) -> None:
    """Train a member through the last stage, in a folder of its own, from where it had stopped."""
    use_one_thread()
    files.out.mkdir(exist_ok=True)
    last = len(recipe.stages) - 1
    _, done = position(recipe, files.out, resume=(files.out / PROGRESS).exists())
    source = (files.out if done else files.out.parent) / CHECKPOINT
    _train_stage(recipe, files, last, number, done, source, device, report)


def _train_stage(
    recipe: Recipe,
    files: Files,
    index: int,
    number: int,
    done: int,
    source: Path | None,
    device: str,
    report: Report | None,
) -> None:
    """Train one stage to its end, of which `done` steps are done; the last one makes a policy.

    Args:
        recipe: Of the training.
        files: Of the training, or of a member's part of it.
        index: The stage.
        number: The member, which draws other runs.
        done: Steps.
        source: Whose weights to begin with.
        device: Of the networks.
        report: Called after every rollout.
    """
    stage = recipe.stages[index]
    with open_runs(recipe, stage, recipe.seed + 1000 * (index + number), files) as env:
        model = make_model(recipe, stage, env, source, device, seed=recipe.seed + number)
        if stage.imitation and not done:
            hold = partial(held, grid=recipe.actions, share=stage.held_share)
            imitate(model, stage.imitation, report, hold=hold if stage.held_share else None)
        _learn(model, stage, index, done, recipe, files.out, report)
    if index == len(recipe.stages) - 1:
        export_policy(model, recipe, files.out / _POLICY)
    save(model, files.out, recipe, index + 1, 0)


def _make_pool(recipe: Recipe, path: Path) -> None:
    if not path.exists():
        pool = make_pool(recipe.pool_size, recipe.seed + 100)
        with replacing(path) as temporary:
            pool.save(temporary)


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=None if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ConfigurationError(
            f"Expected a device that is here, got {device!r} ({str(error).splitlines()[0]}). "
            "Use cpu, or auto for a GPU if there is one."
        ) from error


def make_model(
    recipe: Recipe, stage: Stage, env: VecEnv, source: Path | None, device: str, *, seed: int
) -> RegretPPO:
    """Return the model of a stage of a recipe for an environment, with the weights of `source`."""
    model = RegretPPO(
        PrivilegedCriticPolicy if recipe.privileged_critic else "MlpPolicy",
        env,
        n_steps=stage.rollout_steps,
        batch_size=stage.minibatch,
        n_epochs=stage.epochs,
        gamma=1.0,
        gae_lambda=0.97,
        learning_rate=stage.learning_rate,
        ent_coef=stage.entropy,
        clip_range=stage.clip,
        seed=seed,
        device=device,
        policy_kwargs={
            "net_arch": {"pi": list(recipe.policy_layers), "vf": list(recipe.value_layers)},
            "activation_fn": MODULES[recipe.activation],
        },
    )
    if source is not None:
        if source.suffix == ".safetensors":
            load_weights(model, load_policy(source))
            return model
        # Only the weights and Adam's moments: rollout sizes and rates are the stage's own.
        parameters: Any = PPO.load(source, device="cpu").get_parameters()
        model.set_parameters(parameters)
    return model


def _learn(
    model: PPO,
    stage: Stage,
    index: int,
    done: int,
    recipe: Recipe,
    out: Path,
    report: Report | None,
) -> None:
    model.set_logger(configure(str(out / f"stage{index}"), ["tensorboard"]))
    model.num_timesteps = done
    callback = Progress(stage, index, recipe, out, report)
    remaining = stage.timesteps - done
    if remaining > 0:
        model.learn(remaining, callback=callback, reset_num_timesteps=False)
