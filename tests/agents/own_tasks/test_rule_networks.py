"""Rules of one layer decide as the rules that they stand for, written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.own_tasks.rule_networks import (
    Schedule,
    goodput_policy,
    schedule_policy,
    size_policy,
)
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.testing.generators import random_signals

ACTIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
CARD = PolicyCard(objectives=("target",), noise_rate=0.0)


def observed(seed: int, **known: float) -> np.ndarray:
    seen = np.random.default_rng(seed).uniform(-1.0, 1.0, OBSERVATION_SIZE)
    for name, value in known.items():
        seen[OBSERVATION_NAMES.index(name)] = value
    return seen.astype(np.float32)


def change(policy: LearnedPolicy, seen: np.ndarray) -> float:
    signals = random_signals((), np.random.default_rng(0))
    return float(policy.decide(seen, signals, policy.initial_state())[0].log2_change)


@pytest.mark.parametrize("goal", [-2, 0, 3])
def test_a_size_is_gone_to_and_kept(goal: int) -> None:
    policy = size_policy(goal, ACTIONS, CARD)
    for size in range(-6, 7):
        expected = min(ACTIONS, key=lambda action: abs(size + action - goal))
        assert change(policy, observed(size + 6, size_vs_base=size / 8)) == expected


def test_the_most_productive_size_is_gone_to() -> None:
    policy = goodput_policy(ACTIONS, CARD)
    for step in (-2.9, -1.2, -0.2, 0.3, 1.8, 3.0):
        assert change(policy, observed(1, goodput_step=step / 6)) == round(step)


def test_a_schedule_follows_the_loss_and_the_steps() -> None:
    schedule = Schedule(end=2.0, by_loss=-1.0, by_steps=0.5, end_steps=9.0)
    policy = schedule_policy(schedule, ACTIONS, CARD)
    for size, excess, log2_steps in ((0, 0.0, 9.0), (1, 2.2, 9.0), (2, 0.1, 3.2), (-1, 0.9, 6.1)):
        goal = 2.0 - excess + 0.5 * (log2_steps - 9.0)
        seen = observed(
            *(3,),
            size_vs_base=size / 8,
            recent_vs_target=excess / 3,
            steps_done=log2_steps / 8 - 1,
        )
        assert change(policy, seen) == min(ACTIONS, key=lambda a: abs(size + a - goal))


def test_such_a_policy_is_a_policy_file_like_any_other(tmp_path: Path) -> None:
    policy = size_policy(1, ACTIONS, CARD)
    save_policy(tmp_path / "size.safetensors", policy, CARD)
    loaded = load_policy(tmp_path / "size.safetensors")
    assert loaded.noise_rate == 0.0
    seen = observed(5, size_vs_base=-0.25)
    assert change(loaded, seen) == change(policy, seen) == 3.0
    assert change(replace(loaded, masked=True), seen) in ACTIONS
