"""Learning from live runs of one's own tasks, in segments that each end with a policy file.

The first segment is a regression (`rlbatch.agents.imitation`) after which the network decides as
the best schedule or size that was found before, or, where the shipped policy was better than these,
by what every action's size costs from start to end. PPO goes on from there with what the runs
themselves show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from rlbatch.agents.imitation import fit, labels
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.sampler import OwnTaskSampler
from rlbatch.agents.own_tasks.validation import Candidate
from rlbatch.agents.ppo import make_model
from rlbatch.agents.progress import EpisodeFigures
from rlbatch.agents.ray_runs import Start
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.agents.weights import export_policy, load_weights
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.live_vec_env import LiveVecEnv
from rlbatch.envs.mixed_vec_env import MixedVecEnv
from rlbatch.envs.privileged import LARGEST_REGRET
from rlbatch.envs.remote_vec_env import RemoteVecEnv
from rlbatch.files import replacing
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.policy.network import Network

ROUNDS = 1
"""Segments of regression."""

_RUNS = 4  # side by side in a process
_FEWEST_ROWS, _MOST_ROWS = 256, 12_000
_UPDATES, _FIT_MINIBATCH, _MOST_PASSES = 300, 1024, 200
_ROLLOUT = 32
_TEACHER_SHARPNESS = 16.0  # of its odds for each factor of two that an action counts as dearer

Report = Callable[[str, float], None]
"""Told what is being done, and the share of it that is."""


def recipe_of(plan: Plan) -> Recipe:
    """Return what a training on one's own tasks consists of, its lengths aside."""
    stage = Stage(
        timesteps=1,  # the time decides
        simulated=0,
        real=_RUNS,
        rollout_steps=_ROLLOUT,
        minibatch=256,
        epochs=4,
        learning_rate=1e-4,
        entropy=0.001,
        clip=0.1,
    )
    layers: dict[str, Any] = {}
    if plan.start_from is not None:
        member = load_policy(plan.start_from).members[0]
        layers = {
            "policy_layers": member.sizes("policy")[1:-1],
            "value_layers": member.sizes("value")[1:-1],
            "activation": member.activation,
            "actions": load_policy(plan.start_from).action_grid,
        }
    return Recipe(
        "own-tasks",
        (stage,),
        tasks=plan.tasks,
        seed=plan.seed,
        # In a run of a task that is known, what it tells is not worth what it costs.
        noise_rate=0.0,
        budget_share=0.0,
        mixed_share=0.0,
        goodput_slack=None,
        keeps_steps=False,
        near_base=False,
        **layers,
    )


@dataclass(frozen=True)
class Segment:
    """A stretch of learning.

    Attributes:
        number: From 1; the first `ROUNDS` are regressions.
        source: Checkpoint whose weights to begin with; None takes the plan's.
        policy: The policy file that it ends with.
        seconds: That it may take.
        teacher: Policy file that a regression is to decide as; None: by the costs of fixed sizes.
    """

    number: int
    source: Path | None
    policy: Path
    seconds: float
    teacher: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Weights, optimizer and all; it runs code when loaded."""
        return self.policy.with_suffix(".zip")


def next_segment(
    number: int,
    policy: Path,
    seconds: float,
    candidates: Sequence[Candidate],
    best: Callable[[Sequence[Candidate]], Candidate],
) -> Segment:
    """Return a segment: a regression first, and then PPO from the best learned so far.

    Args:
        number: Of the segment.
        policy: The policy file that it ends with.
        seconds: That it may take.
        candidates: All so far.
        best: Returns the best of some.
    """
    if learned := [one for one in candidates if one.kind == "learned"]:
        source = Path(best(learned).policy).with_suffix(".zip")
        return Segment(number, source, policy, seconds)
    simple = best([one for one in candidates if one.kind in ("shipped", "size", "schedule")])
    teacher = None if simple.kind == "shipped" else Path(simple.policy)
    return Segment(number, None, policy, seconds, teacher)


class Learner:
    """Live runs in processes, and the network that decides in them."""

    def __init__(
        self, plan: Plan, tasks: Sequence[TaskCosts], out: Path, workers: int, start: Start
    ) -> None:
        """Start the runs.

        Args:
            plan: The training.
            tasks: With the costs of their fixed sizes.
            out: Folder for what is learned from, and TensorBoard's events.
            workers: Processes.
            start: Starts one.
        """
        out.mkdir(parents=True, exist_ok=True)
        self._plan, self._out, self.recipe = plan, out, recipe_of(plan)
        sampler = OwnTaskSampler(plan, tasks)
        self._env = MixedVecEnv(
            [
                RemoteVecEnv(
                    partial(_live_env, sampler, self.recipe, plan.seed + 100 * place), start
                )
                for place in range(workers)
            ]
        )
        self._model: Any = self._begin(None)

    def close(self) -> None:
        """End the runs."""
        self._env.close()

    def learn(self, segment: Segment, report: Report) -> None:
        """Learn for a segment's seconds, and write its policy and checkpoint."""
        self._model = self._begin(segment.source)
        events = self._out / f"segment{segment.number}"
        self._model.set_logger(configure(str(events), ["tensorboard"]))
        figures = _Figures()
        end = time.monotonic() + segment.seconds
        if segment.number <= ROUNDS:
            self._regress(segment, end, figures, report)
        else:
            self._reinforce(end, segment.seconds, figures, report)
        self._model.logger.dump(self._model.num_timesteps)
        with replacing(segment.checkpoint) as temporary:
            self._model.save(temporary)
        export_policy(self._model, self.recipe, segment.policy)

    def _begin(self, source: Path | None) -> Any:
        """Return a model with the weights of a checkpoint, or of the plan."""
        stage = self.recipe.stages[0]
        model = make_model(self.recipe, stage, self._env, source, "cpu", seed=self._plan.seed)
        if source is None and self._plan.start_from is not None:
            policy = load_policy(self._plan.start_from)
            load_weights(model, replace(policy, members=policy.members[:1]))
        return model

    def _rows_file(self, number: int) -> Path:
        return self._out / f"rows{number}.npz"

    def _regress(
        self, segment: Segment, end: float, figures: EpisodeFigures, report: Report
    ) -> None:
        """Gather runs that are decided by the network, and fit it to all that were gathered."""
        begun, model, rows = time.monotonic(), self._model, list[NDArray[np.float32]]()
        told = self._env.reset()
        count, until = self._env.num_envs, end - 0.2 * segment.seconds
        while len(rows) * count < _MOST_ROWS and (
            time.monotonic() < until or len(rows) * count < _FEWEST_ROWS
        ):
            rows.append(np.array(told, dtype=np.float32))
            told, _, _, infos = self._env.step(model.predict(told)[0])
            figures.note(infos)
            model.num_timesteps += count
            if len(rows) % 10 == 0:
                done = (time.monotonic() - begun) / max(segment.seconds, 1e-9)
                report("runs to learn from", min(done, 0.8))
        gathered = np.concatenate(rows)
        path = self._rows_file(segment.number)
        with replacing(path) as temporary:
            np.savez_compressed(temporary, rows=gathered)
        seen = [np.load(self._rows_file(n))["rows"] for n in range(1, segment.number + 1)]
        every = np.concatenate(seen)
        report("learning", 0.8)
        parts = max(len(every) // _FIT_MINIBATCH, 1)
        passes = min(max(_UPDATES // parts, 1), _MOST_PASSES)
        wanted = labels(model.policy, every)
        if segment.teacher is not None:
            wanted = taught(load_policy(segment.teacher).members[0], every)
        fit(model, every, wanted, passes)
        model.policy.optimizer.state.clear()  # Adam's moments are of a net that is no more
        for name, value in figures.values().items():
            model.logger.record(name, value)

    def _reinforce(self, end: float, seconds: float, figures: _Figures, report: Report) -> None:
        """Go on with PPO, rollout by rollout, until the time is over."""
        model, stage = self._model, self.recipe.stages[0]
        rollout = stage.rollout_steps * self._env.num_envs
        model.num_timesteps = 0
        model._last_obs = None  # a segment begins with fresh runs
        while True:
            left = max((end - time.monotonic()) / max(seconds, 1e-9), 0.0)
            report("reinforcement learning", 1.0 - left)
            model.lr_schedule = partial(_constant, stage.learning_rate * max(left, 0.1))
            figures.left = left * seconds
            model.learn(rollout, callback=figures, reset_num_timesteps=False)
            if time.monotonic() >= end:
                return


def taught(teacher: Network, told: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return, as `labels`, how much dearer every action counts than the teacher's choice, in log2.

    Args:
        teacher: Of `rule_networks`: the odds of an action are minus the square of how far it leads
            from the goal, which makes neighbouring sizes count little.
        told: What an environment tells, shape (n, features).

    Returns:
        Shape (n, actions).
    """
    odds = teacher.forward("policy", told[:, :OBSERVATION_SIZE])
    below = (odds.max(axis=1, keepdims=True) - odds) / _TEACHER_SHARPNESS
    return np.minimum(below, LARGEST_REGRET).astype(np.float32)


class _Figures(BaseCallback, EpisodeFigures):
    """TensorBoard's curves of a segment."""

    left = 0.0

    def __init__(self) -> None:
        BaseCallback.__init__(self)
        EpisodeFigures.__init__(self)

    def _on_step(self) -> bool:
        self.note(self.locals["infos"])
        return True

    def _on_rollout_end(self) -> None:
        for name, value in self.values().items():
            self.logger.record(name, value)
        self.logger.record("time/left_seconds", self.left)


def _constant(value: float, _: float) -> float:
    return value


def _live_env(sampler: OwnTaskSampler, recipe: Recipe, seed: int, crashes: int) -> VecEnv:
    return LiveVecEnv(
        sampler,
        _RUNS,
        seed + 500 * crashes,
        recipe.actions,
        privileged=True,
        make=lambda setting: LiveEpisode(replace(setting, noise_rate=recipe.noise_rate)),
    )
