"""Runs of so many samples, against plain runs of a constant batch size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.envs.fixed_run import Curve, fixed_run_curve
from rlbatch.envs.live_vec_env import LiveVecEnv
from rlbatch.envs.planned_episode import (
    PlannedEpisode,
    PlannedSampler,
    PlannedSetting,
)
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.reward import BETTER_WEIGHT, WORSE_WEIGHT, loss_penalty
from rlbatch.envs.task import resolve_task
from rlbatch.signals.record import Coupling
from tests.envs.test_settings import NAMES, write_tables

TASK = "teacher-student"
BASE = resolve_task(TASK).batch_size
PROFILE = resolve_profile("accelerator-512")
SETTING = PlannedSetting(TASK, 3, Coupling.SQRT, PROFILE, planned_samples=80.0 * BASE)
UNMEASURED = replace(SETTING, noise_rate=0.0)


def plain(batch_size: int, samples: int) -> Curve:
    return fixed_run_curve(
        resolve_task(TASK), batch_size, seed=3, coupling=Coupling.SQRT, max_samples=samples
    )


def returns(episode: PlannedEpisode, changes: list[float]) -> tuple[float, list[int]]:
    total, sizes = 0.0, list[int]()
    while not episode.run.finished:
        step = episode.step(changes.pop(0) if changes else 0.0)
        total += step.reward
        sizes.append(int(step.signals.batch_size))
        assert step.terminated == episode.run.finished
        assert not step.truncated
    return total, sizes


def test_who_stays_pays_the_reference_and_ends_where_it_ends() -> None:
    episode = PlannedEpisode(UNMEASURED)
    step_seconds = float(PROFILE.step_seconds(BASE))
    assert episode.reference_cost == pytest.approx(80 * step_seconds)
    first = episode.run.cost / episode.reference_cost
    total, sizes = returns(episode, [])
    assert total == pytest.approx(-1.0 + first)
    assert set(sizes) == {BASE}
    assert episode.run.samples_seen == 80 * BASE
    curve = plain(BASE, 80 * BASE)
    assert episode.reference_loss == pytest.approx(float(curve.val_loss[-1]), rel=1e-5)
    assert episode.info()["ratio"] == pytest.approx(1.0)


def test_a_larger_batch_is_paid_in_time_and_in_loss() -> None:
    episode = PlannedEpisode(UNMEASURED)
    first = episode.run.cost
    total, sizes = returns(episode, [1.0])
    run = episode.run
    assert set(sizes) == {2 * BASE}
    seconds = sum(float(PROFILE.step_seconds(size)) for size in (BASE, *[2 * BASE] * 40))
    assert run.cost == pytest.approx(seconds)
    assert run.samples_seen == 81 * BASE
    worse = math.log(run.val_loss / float(plain(BASE, 80 * BASE).val_loss[-1]))
    assert 0.05 < worse < math.log(2.0)  # or else this tests nothing
    cost = (run.cost - first) / episode.reference_cost
    assert total == pytest.approx(-cost - WORSE_WEIGHT * worse, rel=1e-4)


def test_the_users_batch_size_is_the_least() -> None:
    _, sizes = returns(PlannedEpisode(UNMEASURED), [-3.0, 1.0, -3.0])
    assert sizes[:4] == [BASE, 2 * BASE, BASE, BASE]


def test_a_loss_counts_by_its_logarithm_and_within_bounds() -> None:
    assert loss_penalty(1.0) == 0.0
    assert loss_penalty(1.01) == pytest.approx(WORSE_WEIGHT * math.log(1.01))
    assert loss_penalty(0.99) == pytest.approx(BETTER_WEIGHT * math.log(0.99))
    assert loss_penalty(1e9) == loss_penalty(math.inf) == pytest.approx(WORSE_WEIGHT * math.log(2))
    assert loss_penalty(1e-9) == pytest.approx(-0.15 * BETTER_WEIGHT)


def test_the_plan_is_what_the_policy_sees_spent() -> None:
    signals = PlannedEpisode(SETTING).first
    assert float(signals.context.planned_samples) == 80 * BASE
    assert math.isnan(float(signals.context.target_loss))
    assert math.isnan(float(signals.context.budget))


def test_the_critic_is_told_the_final_loss_and_the_policy_is_not() -> None:
    episode = PlannedEpisode(SETTING)
    before = episode.privileged_row()
    episode.reference_loss *= 1.5
    after = episode.privileged_row()
    assert before.fixed_ratio != after.fixed_ratio
    assert replace(SETTING) == episode.setting


def test_drawn_runs_are_so_many_times_as_long_as_to_their_target(tmp_path: Path) -> None:
    write_tables(tmp_path)
    sampler, rng = PlannedSampler(tmp_path, NAMES), np.random.default_rng(0)
    drawn = [sampler(rng) for _ in range(400)]
    assert {setting.task for setting in drawn} == set(NAMES)
    assert {setting.coupling for setting in drawn} == {
        Coupling.NONE,
        Coupling.SQRT,
        Coupling.LINEAR,
    }
    watched = np.array([setting.cadence.validation_growth < 1 for setting in drawn])
    assert 0.4 < watched.mean() < 0.6
    # The made-up curves take 40 to 120 steps to the targets that can be drawn.
    steps = [s.planned_samples / resolve_task(s.task).batch_size for s in drawn]
    assert 8 <= min(steps) < 100
    assert 250 < max(steps) <= 600


def test_many_side_by_side() -> None:
    def draw(rng: np.random.Generator) -> PlannedSetting:
        return replace(UNMEASURED, seed=int(rng.integers(99)), planned_samples=20.0 * BASE)

    env = LiveVecEnv(draw, 2, 0, (0.0, 1.0), make=PlannedEpisode, privileged=True)
    env.reset()
    ends = 0
    for _ in range(12):
        seen, rewards, ended, infos = env.step(np.array([0, 1]))
        assert np.isfinite(np.asarray(seen)).all()
        assert (rewards < 1).all()
        for i in np.flatnonzero(ended):
            ends += 1
            assert infos[i]["reached"]
            assert infos[i]["ratio"] == pytest.approx(1.0) if i == 0 else True
    assert ends >= 2
