"""Runs with a budget, against plain runs of a constant batch size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.envs.budget_episode import BudgetEpisode, begin_episode
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.fixed_run import Curve, fixed_run_curve
from rlbatch.envs.live_vec_env import LiveVecEnv
from rlbatch.envs.objectives import Cadence, disutility
from rlbatch.envs.profiles import resolve_profile, step_cost
from rlbatch.envs.settings import BudgetSetting, EpisodeSetting, SettingSampler
from rlbatch.envs.task import resolve_task
from rlbatch.signals.record import Coupling
from tests.envs.test_settings import NAMES, fixed_run_cost, write_tables

TASK = "teacher-student"
BASE = resolve_task(TASK).batch_size
PROFILE = resolve_profile("accelerator-512")
STEPS = 60
BUDGET = (STEPS - 0.5) * float(PROFILE.step_seconds(BASE))  # spent with the sixtieth step


def plain(batch_size: int) -> Curve:
    return fixed_run_curve(
        resolve_task(TASK), batch_size, seed=3, coupling=Coupling.SQRT, max_steps=3 * STEPS
    )


def cost_at(batch_size: int, loss: float) -> float:
    """What a constant size costs to a loss, from its own run."""
    curve = plain(batch_size)
    there = np.flatnonzero(np.array(curve.val_loss) <= loss)
    seconds = float(PROFILE.step_seconds(batch_size))
    return float(curve.steps[there[0]]) * seconds if len(there) else math.inf


SETTING = BudgetSetting(
    task=TASK,
    seed=3,
    coupling=Coupling.SQRT,
    profile=PROFILE,
    target_loss=1e-9,  # of no account
    start_batch_size=BASE,
    reference_cost=BUDGET,
    cadence=Cadence(),
    cost_of_loss=lambda loss: cost_at(BASE, loss),
)
UNMEASURED = replace(SETTING, noise_rate=0.0)


def returns(episode: LiveEpisode, changes: list[float]) -> float:
    total = 0.0
    while not episode.run.finished:
        step = episode.step(changes.pop(0) if changes else 0.0)
        total += step.reward
        assert step.terminated == episode.run.finished
        assert not step.truncated
    return total


def test_who_stays_at_the_best_size_pays_what_it_pays() -> None:
    episode = BudgetEpisode(UNMEASURED)
    first = episode.ratio
    total = returns(episode, [])
    run = episode.run
    assert run.steps == STEPS
    assert episode.spent == pytest.approx(STEPS / (STEPS - 0.5))
    curve = plain(BASE)
    lowest = min(v.loss for v in run.validations)
    assert lowest == pytest.approx(
        min(np.array(curve.val_loss)[np.array(curve.steps) <= STEPS]), rel=1e-5
    )
    when = min(v.cost for v in run.validations if v.loss == lowest)
    assert episode.ratio == pytest.approx(run.cost / when)
    assert total == pytest.approx(float(disutility(first) - disutility(episode.ratio)))
    assert episode.reached
    assert episode.info()["reached"]


def test_a_worse_size_is_as_much_worse_as_its_loss_comes_late() -> None:
    episode = BudgetEpisode(UNMEASURED)
    returns(episode, [3.0, 3.0])  # to sixty-four times the size, which costs and gains little
    lowest = min(v.loss for v in episode.run.validations)
    expected = episode.run.cost / cost_at(BASE, lowest)
    assert expected > 1.05  # or else this tests nothing
    assert episode.ratio == pytest.approx(expected)


def test_the_policy_sees_the_budget_and_no_target() -> None:
    episode = BudgetEpisode(SETTING)
    assert math.isnan(float(episode.run.context.target_loss))
    assert float(episode.run.context.budget) == BUDGET


def test_what_no_fixed_size_reaches_counts_as_half_of_what_is_spent() -> None:
    setting = replace(SETTING, cost_of_loss=lambda _: math.inf)
    episode = BudgetEpisode(replace(setting, noise_rate=0.0))
    returns(episode, [])
    assert episode.ratio == pytest.approx(episode.spent / 2.0)


@pytest.mark.parametrize("guard", [True, False])
def test_a_run_that_diverges_counts_four(guard: bool) -> None:
    setting = replace(SETTING, learning_rate_scale=1e6, coupling=Coupling.LINEAR)
    episode = begin_episode(replace(setting, noise_rate=0.0, guard=guard))
    assert isinstance(episode, BudgetEpisode)
    first = episode.ratio
    total = returns(episode, [1.0] * 9)
    assert episode.run.diverged
    assert not episode.reached
    assert total == pytest.approx(float(disutility(first) - disutility(4.0)))


def test_a_budget_is_the_same_at_a_size_that_a_user_might_have_chosen(tmp_path: Path) -> None:
    write_tables(tmp_path)
    sampler = SettingSampler(tmp_path, NAMES, budget_share=1.0, user_share=1.0)
    rng = np.random.default_rng(0)
    drawn = [sampler(rng) for _ in range(40)]
    assert any(not isinstance(setting.task, str) for setting in drawn)  # the size was moved
    for setting in drawn:
        assert isinstance(setting, BudgetSetting)
        least = setting.cost_of_loss(setting.target_loss)
        assert least == pytest.approx(setting.reference_cost)


def test_samplers_draw_budgets_and_mixes_in_their_shares(tmp_path: Path) -> None:
    write_tables(tmp_path)
    sampler = SettingSampler(tmp_path, NAMES, budget_share=0.3, mixed_share=0.4)
    rng = np.random.default_rng(0)
    drawn = [sampler(rng) for _ in range(400)]
    budgets = [s for s in drawn if isinstance(s, BudgetSetting)]
    assert len(budgets) / 400 == pytest.approx(0.3, abs=0.07)
    mixed = [s for s in drawn if s.weights.joules > 0.0]
    assert len(mixed) / 400 == pytest.approx(0.4, abs=0.07)
    assert {s.weights.joules == 1.0 for s in mixed} == {True, False}
    for setting in drawn:
        assert setting.weights.seconds + setting.weights.samples + setting.weights.joules == (
            pytest.approx(1.0)
        )
    for setting in budgets[:20]:
        # The budget is what the best fixed size costs to the target that was drawn with it.
        least = setting.cost_of_loss(setting.target_loss)
        assert least == pytest.approx(setting.reference_cost)
        assert setting.cost_of_loss(2.0 * setting.target_loss) < least
        assert setting.profile is not None
        if not setting.weights.joules:
            task = resolve_task(setting.task)
            sizes = (s for s in range(-4, 6) if 1 <= task.batch_size * 2.0**s <= 700)
            costs = [fixed_run_cost(setting, task, shift) for shift in sizes]
            assert least == pytest.approx(min(costs))
    for setting in mixed[:20]:
        assert setting.profile is not None
        base = resolve_task(setting.task).batch_size
        assert setting.fixed_costs[base] > 0.0
        assert step_cost(setting.profile, setting.weights, 2 * base, base) > step_cost(
            setting.profile, setting.weights, base, base
        )


def test_both_kinds_run_side_by_side(tmp_path: Path) -> None:
    write_tables(tmp_path)
    sampler = SettingSampler(tmp_path, NAMES, budget_share=0.5, mixed_share=0.5)
    kinds: set[type] = set()

    def begin(setting: EpisodeSetting) -> LiveEpisode:
        episode = begin_episode(setting)
        kinds.add(type(episode))
        return episode

    env = LiveVecEnv(sampler, 6, 0, (-1.0, 0.0, 1.0), make=begin, privileged=True)
    env.reset()
    rng = np.random.default_rng(1)
    for _ in range(30):
        env.step_async(rng.integers(3, size=6))
        seen, rewards, _, infos = env.step_wait()
        assert np.isfinite(np.asarray(seen)).all()
        assert np.isfinite(rewards).all()
        for info in infos:
            assert info.get("ratio", 1.0) > 0.0
    assert kinds == {LiveEpisode, BudgetEpisode}
