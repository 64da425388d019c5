"""Trains a controller with PPO: simulated runs first, then simulated and real runs together.

Stable-Baselines3's zip is a checkpoint of the training only (loading one runs code in it); what is
deployed is the policy file that `export_policy` writes.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from rlbatch.agents.critic import InformedCriticPolicy, deployable, informed
from rlbatch.agents.hidden import HiddenGroups, blind
from rlbatch.agents.imitation import Report, imitate
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.agents.side_by_side import train_side_by_side
from rlbatch.envs.budget_episode import begin_episode
from rlbatch.envs.live_vec_env import LiveVecEnv
from rlbatch.envs.mixed_vec_env import MixedVecEnv
from rlbatch.envs.planned_episode import PlannedEpisode, PlannedSampler
from rlbatch.envs.quadratic.pool import TaskPool, make_pool
from rlbatch.envs.quadratic.vector_env import QuadraticVecEnv
from rlbatch.envs.remote_vec_env import RemoteVecEnv
from rlbatch.envs.settings import SettingSampler
from rlbatch.envs.threads import use_one_thread
from rlbatch.errors import ConfigurationError
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy, join
from rlbatch.policy.network import Network

_CHECKPOINT, _PROGRESS, _POLICY = "checkpoint.zip", "progress.json", "policy.safetensors"
_POOL = "pool.npz"
_ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    curves: Path | None = None,
    start_from: Path | None = None,
    report: Report | None = None,
    device: str = "auto",
) -> Path:
    """Train by a recipe and return the path of the policy file.

    A checkpoint is written after every rollout; a training stopped at any moment and resumed loses
    at most one, or the regression that its stage begins with.

    Args:
        recipe: What to do.
        out: Folder of the checkpoint, TensorBoard events and the policy.
        resume: Continue from the folder's checkpoint.
        curves: Folder of learning curves (scripts/make_curves.py); needed by stages with real runs.
        start_from: Checkpoint or policy file whose weights to begin with.
        report: Called after every rollout with its figures.
        device: Where the networks are: `cpu`, `cuda`, or `auto`, a GPU if there is one. The runs
            themselves are NumPy's, on the CPU.

    Raises:
        ConfigurationError: The folder holds another training, there is nothing to resume, or the
            device is not there.
    """
    _require_device(device)
    if start_from is not None and not start_from.is_file():
        raise ConfigurationError(f"No policy file or checkpoint at {start_from}. Check the path.")
    use_one_thread()
    out.mkdir(parents=True, exist_ok=True)
    before, done = _position(recipe, out, resume)
    if any(stage.simulated for stage in recipe.stages):
        _make_pool(recipe, out / _POOL)
    files = _Files(out, out / _POOL, curves)
    for index in range(before, len(recipe.stages) - (recipe.members > 1)):
        source = out / _CHECKPOINT if index or done else start_from
        _train_stage(recipe, files, index, 0, done, source, device, report)
        done = 0
    path = out / _POLICY
    if recipe.members > 1:
        folders = [out / f"member{number}" for number in range(recipe.members)]
        train_side_by_side(
            {
                number: partial(_train_member, recipe, replace(files, out=folder), number, device)
                for number, folder in enumerate(folders)
                if not (folder / _POLICY).exists()
            },
            report,
        )
        joined = join([load_policy(folder / _POLICY) for folder in folders])
        save_policy(path, joined, joined.card)
    return path


@dataclass(frozen=True)
class _Files:
    """Where a training, or a member's part of it, writes, and what it reads."""

    out: Path
    pool: Path
    curves: Path | None


def _train_member(
    recipe: Recipe, files: _Files, number: int, device: str, report: Report | None
) -> None:
    """Train a member through the last stage, in a folder of its own, from where it had stopped."""
    use_one_thread()
    files.out.mkdir(exist_ok=True)
    last = len(recipe.stages) - 1
    _, done = _position(recipe, files.out, resume=(files.out / _PROGRESS).exists())
    source = (files.out if done else files.out.parent) / _CHECKPOINT
    _train_stage(recipe, files, last, number, done, source, device, report)


def _train_stage(
    recipe: Recipe,
    files: _Files,
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
    env = _environment(recipe, stage, recipe.seed + 1000 * (index + number), files)
    try:
        model = _model(recipe, stage, env, source, device, seed=recipe.seed + number)
        if stage.imitation and not done:
            imitate(model, stage.imitation, report)
        _learn(model, stage, index, done, recipe, files.out, report)
    finally:
        env.close()
    if index == len(recipe.stages) - 1:
        export_policy(model, recipe, files.out / _POLICY)
    _save(model, files.out, recipe, index + 1, 0)


def export_policy(
    model: PPO, recipe: Recipe, path: Path, results: dict[str, Any] | None = None
) -> None:
    """Write the deployable policy file of a trained model."""
    card = PolicyCard(
        objectives=recipe.objectives,
        couplings=("none", "sqrt", "linear", "adascale"),
        noise_rate=recipe.noise_rate,
        recipe=recipe.name,
        recipe_hash=recipe.digest(),
        results=results or {},
    )
    parameters = {name: tensor.cpu().numpy() for name, tensor in model.policy.state_dict().items()}
    network = Network.from_sb3(blind(deployable(parameters), recipe.hidden), recipe.activation)
    policy = LearnedPolicy(
        (network,),
        action_grid=recipe.actions,
        goodput_slack=recipe.goodput_slack,
        keeps_steps=recipe.keeps_steps,
        card=card,
    )
    save_policy(path, policy, card)


def load_weights(model: PPO, policy: LearnedPolicy) -> None:
    """Give a model the weights of a deployed policy, to train it further.

    Raises:
        ConfigurationError: The policy is an ensemble, or its layers or actions are others.
    """
    if len(policy.members) != 1:
        raise ConfigurationError(
            f"Only a single network can be trained further, got "
            f"an ensemble of {len(policy.members)}."
        )
    (member,) = policy.members
    if model.policy.activation_fn is not _ACTIVATIONS[member.activation]:
        raise ConfigurationError(
            f"The recipe's activation is to be the policy's, {member.activation}. Choose a recipe "
            "with the same one."
        )
    weights: dict[str, torch.Tensor] = {}
    for net, head, layers in (
        ("policy_net", "action_net", member.policy),
        ("value_net", "value_net", member.value),
    ):
        names = [f"mlp_extractor.{net}.{2 * i}" for i in range(len(layers) - 1)]
        for name, layer in zip([*names, head], layers, strict=True):
            weights[f"{name}.weight"] = torch.tensor(layer.weight)
            weights[f"{name}.bias"] = torch.tensor(layer.bias)
    if isinstance(model.policy, InformedCriticPolicy):
        weights = informed(weights)
    try:
        model.policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigurationError(
            "The policy's layers or actions are not those of the recipe. Choose a recipe with the "
            "same ones."
        ) from error


def _position(recipe: Recipe, out: Path, resume: bool) -> tuple[int, int]:
    progress = out / _PROGRESS
    if not progress.exists():
        if resume:
            raise ConfigurationError(
                f"Nothing to resume in {out}: it holds no {_PROGRESS}. Train without --resume."
            )
        return 0, 0
    if not resume:
        raise ConfigurationError(
            f"{out} already holds a training. Add --resume, or choose another folder."
        )
    try:
        state = json.loads(progress.read_text())
        digest, name = state["recipe"], state["name"]
        position = int(state["stage"]), int(state["timesteps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{progress} is damaged ({type(error).__name__}: {error}). Train in another folder; "
            f"--start-from {out / _CHECKPOINT} begins with the weights of this one."
        ) from error
    if digest != recipe.digest():
        raise ConfigurationError(
            f"{out} holds a training by another recipe ({name!r}). Choose another folder."
        )
    return position


def _environment(recipe: Recipe, stage: Stage, seed: int, files: _Files) -> VecEnv:
    parts: list[VecEnv] = []
    if stage.real:
        if files.curves is None:
            raise ConfigurationError(
                "This recipe trains on real tasks and needs their learning curves. Make them with "
                "scripts/make_curves.py --out DIR and pass --curves DIR."
            )
        workers = min(os.cpu_count() or 1, stage.real)
        shares = [len(share) for share in np.array_split(np.arange(stage.real), workers)]
        parts += [
            RemoteVecEnv(partial(_live_env, files.curves, recipe, share, seed + i))
            for i, share in enumerate(shares)
        ]
    if stage.simulated:
        parts.append(_simulated_env(recipe, stage, seed, files.pool))
    env = MixedVecEnv(parts)
    return HiddenGroups(env, recipe.hidden) if recipe.hidden else env


def _make_pool(recipe: Recipe, path: Path) -> None:
    if not path.exists():
        temporary = path.with_suffix(".tmp.npz")
        make_pool(recipe.pool_size, recipe.seed + 100).save(temporary)
        os.replace(temporary, path)


def _live_env(curves: Path, recipe: Recipe, count: int, seed: int, crashes: int) -> VecEnv:
    planned = recipe.objective == "epochs"
    if planned:
        source = PlannedSampler(curves, recipe.tasks, known_share=recipe.known_share)
    else:
        source = SettingSampler(
            curves,
            recipe.tasks,
            known_share=recipe.known_share,
            budget_share=recipe.budget_share,
            mixed_share=recipe.mixed_share,
            plan_shares=recipe.plan_shares,
        )
    return LiveVecEnv(
        source,
        count,
        seed + 500 * crashes,
        recipe.actions,
        make=PlannedEpisode if planned else begin_episode,
        informed=recipe.informed_critic,
        noise_rate=recipe.noise_rate,
    )


def _simulated_env(recipe: Recipe, stage: Stage, seed: int, pool: Path) -> VecEnv:
    return QuadraticVecEnv(
        TaskPool.load(pool),
        stage.simulated,
        seed,
        recipe.actions,
        informed=recipe.informed_critic,
        tells_regrets=not stage.real,  # the stages before have learned more than a fixed size tells
        noise_rate=recipe.noise_rate,
    )


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=None if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ConfigurationError(
            f"Expected a device that is here, got {device!r} ({str(error).splitlines()[0]}). "
            "Use cpu, or auto for a GPU if there is one."
        ) from error


def _model(
    recipe: Recipe, stage: Stage, env: VecEnv, source: Path | None, device: str, *, seed: int
) -> PPO:
    model = PPO(
        InformedCriticPolicy if recipe.informed_critic else "MlpPolicy",
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
            "activation_fn": _ACTIVATIONS[recipe.activation],
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
    callback = _Progress(stage, index, recipe, out, report)
    remaining = stage.timesteps - done
    if remaining > 0:
        model.learn(remaining, callback=callback, reset_num_timesteps=False)


class _Progress(BaseCallback):
    """Checkpoints, learning-rate decay and figures, once a rollout."""

    def __init__(
        self, stage: Stage, index: int, recipe: Recipe, out: Path, report: Report | None
    ) -> None:
        super().__init__()
        self._stage, self._index, self._recipe, self._out, self._report = (
            stage,
            index,
            recipe,
            out,
            report,
        )
        self._ratios: dict[str, deque[float]] = {
            "real": deque(maxlen=400),
            "simulated": deque(maxlen=4000),
        }
        self._begun = time.perf_counter()

    def _on_step(self) -> bool:
        for position, info in enumerate(self.locals["infos"]):
            if "episode" not in info and "terminal_observation" not in info:
                continue
            kind = "real" if position < self._stage.real else "simulated"
            self._ratios[kind].append(min(info["ratio"], 4.0) if info["reached"] else 4.0)
        return True

    def _on_rollout_start(self) -> None:
        # The weights that this rollout is made with: saved here, a stop loses at most one rollout.
        if self.num_timesteps:
            _save(self.model, self._out, self._recipe, self._index, self.num_timesteps)  # type: ignore[arg-type]
        left = 1.0 - self.num_timesteps / self._stage.timesteps
        rate = self._stage.learning_rate * max(left, 0.05)
        self.model.lr_schedule = lambda _: rate
        if isinstance(self.model.policy, InformedCriticPolicy):
            weight = self._stage.guidance * max(left, 0.0)
            # PPO multiplies what it takes for the entropy with its weight.
            self.model.policy.guidance = weight / self._stage.entropy if weight else 0.0

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        if isinstance(policy, InformedCriticPolicy):
            policy.note(self.model.rollout_buffer.observations)  # type: ignore[attr-defined]
        figures = {
            "timesteps": float(self.num_timesteps),
            "seconds": time.perf_counter() - self._begun,
        }
        for kind, ratios in self._ratios.items():
            if ratios:
                figures[f"ratio_{kind}"] = float(np.exp(np.mean(np.log(np.maximum(ratios, 1e-3)))))
                figures[f"unreached_{kind}"] = float(np.mean(np.asarray(ratios) >= 4.0))
        for name, value in figures.items():
            self.logger.record(f"rollout/{name}", value)
        if self._report is not None:
            self._report(figures)


def _save(model: PPO, out: Path, recipe: Recipe, stage: int, timesteps: int) -> None:
    temporary = out / "checkpoint.tmp.zip"
    model.save(temporary)
    os.replace(temporary, out / _CHECKPOINT)
    state = {"recipe": recipe.digest(), "name": recipe.name, "stage": stage, "timesteps": timesteps}
    text = out / "progress.tmp.json"
    text.write_text(json.dumps(state))
    os.replace(text, out / _PROGRESS)
