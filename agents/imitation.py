"""What every action's size would cost, learned by regression before PPO begins.

A return tells of the one action that was taken; the known regrets
(`rlbatch.envs.privileged.regrets`) tell of all of them. And PPO forgets a rollout after a few
passes, where a regression goes over all of them many times. In runs of which no regrets are known,
the simulated ones beside real ones, the actor is held to what it said when the regression began.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from torch import Tensor, nn
from torch.nn import functional

from rlbatch.agents.critic import known_regrets
from rlbatch.envs.privileged import LARGEST_REGRET
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

SHARPNESS = 8.0
"""Log odds of an action for each factor of two that it is expected to cost less than another."""

ROUNDS = 2
"""Of which each is decided by what was learned in those before."""

_PASSES, _MINIBATCH, _RATE, _DECAY = 16, 1024, 2e-3, 0.05
_DROPOUT = 0.2  # without, a regression over few tasks learns them by heart
_REPORT_EVERY = 50  # steps of all runs
_SIZE, _PLAN_KNOWN, _PLAN_DONE = map(
    OBSERVATION_NAMES.index, ("size_vs_base", "plan_known", "plan_done")
)
_SIZE_SCALE = 8.0  # doublings of that observation at 1
_SAME_SIZE = 0.02  # doublings: sizes are rounded to whole numbers

Report = Callable[[dict[str, float]], None]


def imitate(
    model: PPO,
    steps: int,
    report: Report | None = None,
    *,
    hold: Callable[[NDArray[Any], NDArray[np.float32]], NDArray[Any]] | None = None,
) -> None:
    """Have the actor's log odds say what the actions are known to cost.

    The runs that are learned from are decided by the actor itself, as it is in each of the `ROUNDS`
    (DAgger: Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to
    No-Regret Online Learning", algorithm 3.1). Softmax makes of the result a policy that explores
    where the costs differ little.

    Args:
        model: Of an `PrivilegedCriticPolicy`, with its environment.
        steps: Environment steps in all.
        report: Called from time to time with figures.
        hold: Changes actions, given them and what the environment tells, before they are taken; as
            `held`. What is learned is what all of them would cost, all the same.
    """
    env: Any = model.get_env()
    begun, told = time.perf_counter(), env.reset()
    teacher = copy.deepcopy(model.policy)
    rows: list[NDArray[np.float32]] = []
    for _ in range(ROUNDS):
        for _ in range(max(steps // (ROUNDS * env.num_envs), 1)):
            rows.append(np.array(told, dtype=np.float32))
            actions = model.predict(told)[0]
            told = env.step(actions if hold is None else hold(actions, told))[0]
            if report is not None and len(rows) % _REPORT_EVERY == 0:
                seconds = time.perf_counter() - begun
                report({"imitation": float(len(rows) * env.num_envs), "seconds": seconds})
        seen = np.concatenate(rows)
        fit(model, seen, labels(teacher, seen))
    model.policy.optimizer.state.clear()  # Adam's moments are of a net that is no more


def held(
    actions: NDArray[np.int64],
    told: NDArray[np.float32],
    grid: Sequence[float],
    share: float,
) -> NDArray[np.int64]:
    """Return actions that keep runs from going above the user's size early in a known plan.

    Args:
        actions: Indices into the grid, shape (n,).
        told: What an environment tells, shape (n, features).
        grid: Changes of log2(batch size), ascending.
        share: Of the planned samples, before which a run is held. A run of an unknown plan never
            is.

    Returns:
        For each run that is held the drawn action or, where that leads above the user's size, the
        largest that does not; the smallest where all do.
    """
    changes = np.asarray(grid, dtype=np.float64)
    early = (told[:, _PLAN_KNOWN] > 0.0) & (told[:, _PLAN_DONE] < share)
    room = -_SIZE_SCALE * told[:, _SIZE].astype(np.float64) + _SAME_SIZE
    most = np.maximum(np.searchsorted(changes, room, side="right") - 1, 0)
    return np.where(early, np.minimum(actions, most), actions)


def labels(teacher: Any, told: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what every action is to be expected to cost more than the best, in log2.

    Args:
        teacher: An `PrivilegedCriticPolicy`, asked where no regrets are known.
        told: What an environment tells, shape (n, features): the last are the regrets.

    Returns:
        Shape (n, actions).
    """
    regrets: NDArray[np.float32] = known_regrets(told)
    unknown = np.flatnonzero(np.abs(regrets).sum(axis=1) == 0.0)
    for start in range(0, len(unknown), _MINIBATCH):
        part = unknown[start : start + _MINIBATCH]
        with torch.no_grad():
            seen = torch.as_tensor(told[part], device=teacher.device)
            odds = teacher.get_distribution(seen).distribution.logits
        below = (odds.max(dim=1, keepdim=True).values - odds) / SHARPNESS
        regrets[part] = below.clamp(max=LARGEST_REGRET).cpu().numpy()
    return regrets


def fit(
    model: PPO, told: NDArray[np.float32], wanted: NDArray[np.float32], passes: int = _PASSES
) -> None:
    """Fit the actor's log odds to minus `SHARPNESS` times the labels, by least squares.

    Args:
        model: Of an `PrivilegedCriticPolicy`.
        told: What its environment tells, shape (n, features).
        wanted: The labels, shape (n, actions).
        passes: Over all rows.
    """
    policy: Any = model.policy
    seen = torch.as_tensor(told[:, :OBSERVATION_SIZE], device=model.device)
    expected = torch.as_tensor(wanted, device=model.device)
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    optimizer = torch.optim.AdamW(
        [weight for layer in layers for weight in layer.parameters()], _RATE, weight_decay=_DECAY
    )
    parts = max(len(seen) // _MINIBATCH, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, passes * parts)
    for _ in range(passes):
        for index in torch.randperm(len(seen)).to(model.device).tensor_split(parts):
            found = _thinned(layers, seen[index]) / -SHARPNESS
            optimizer.zero_grad()
            functional.mse_loss(found, expected[index]).backward()
            optimizer.step()
            schedule.step()


def _thinned(layers: list[nn.Module], values: Tensor) -> Tensor:
    """Return what the layers give while some of their units are silent."""
    for layer in layers:
        values = layer(values)
        if not isinstance(layer, nn.Linear):
            values = functional.dropout(values, _DROPOUT)
    return values
