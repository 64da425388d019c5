"""Episodes on the simulator: rewards add up to the ratio, references are what a run at that size
costs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.distribution import Distribution
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.errors import ConfigurationError

ACTIONS = (-1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    return make_pool(200, seed=3)


def test_the_reference_is_the_cheapest_fixed_size_by_brute_force(pool: TaskPool) -> None:
    for task in range(0, 40, 4):
        best = np.inf
        alone = pool.tasks.take(np.array([task]))
        for exponent in range(17):
            size = 2.0**exponent
            if not alone.min_batch_size[0] <= size <= alone.max_batch_size[0]:
                continue
            run = QuadraticRuns(alone, np.random.default_rng(0), exact=True)
            while run.cost[0] < 4 * pool.reference_cost[task]:
                before = run.cost[0]
                outcome = run.advance(np.array([size]))
                low, high = outcome.validation_before[0], outcome.validation_after[0]
                if run.diverged[0]:
                    break
                if high <= pool.target_loss[task]:
                    part = np.log(low / pool.target_loss[task]) / np.log(low / high)
                    best = min(best, before + part * outcome.cost[0])
                    break
        assert best == pytest.approx(pool.reference_cost[task], rel=1e-6)


def test_episodes_made_for_tasks_are_those_that_begin_them(pool: TaskPool) -> None:
    tasks = np.array([3, 1, 4, 1, 5])
    made = QuadraticEpisodes(pool, 5, np.random.default_rng(0), tasks=tasks)
    begun = QuadraticEpisodes(pool, 5, np.random.default_rng(0))
    begun.begin(np.arange(5), tasks[::-1])
    begun.step(None)
    begun.rng = begun.runs.rng = np.random.default_rng(0)
    begun.begin(np.arange(5), tasks)
    for _ in range(20):
        one, other = made.step(np.ones(5)), begun.step(np.ones(5))
        for name in vars(one):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def counted(ratio: float) -> float:
    """What a ratio counts in the reward."""
    return ratio if ratio <= 1.0 else 1.0 + math.log(ratio)


def test_rewards_of_an_episode_sum_to_what_its_ratio_counts(pool: TaskPool) -> None:
    count = len(pool)
    episodes = QuadraticEpisodes(pool, count, np.random.default_rng(0))
    episodes.begin(np.arange(count), np.arange(count))
    rng = np.random.default_rng(1)
    transition = episodes.step(None)
    total, over = transition.reward.copy(), transition.ended.copy()
    ratio = transition.ratio.copy()
    for _ in range(300):
        transition = episodes.step(rng.choice([-1.0, 0.0, 0.0, 1.0], size=count))
        total[~over] += transition.reward[~over]
        ended = transition.ended & ~over
        ratio[ended] = transition.ratio[ended]
        over |= transition.ended
        if over.all():
            break
    assert over.all()
    np.testing.assert_allclose(total, [-counted(r) for r in ratio], rtol=1e-9)
    assert ratio.max() <= UNREACHED_RATIO
    assert (ratio < UNREACHED_RATIO).any()


def test_staying_costs_what_the_pool_says_for_that_size(pool: TaskPool) -> None:
    mean = np.full(len(pool), np.inf)  # runs do not vary around what a reference is
    pool = replace(pool, tasks=replace(pool.tasks, directions=mean))
    quiet = np.flatnonzero(pool.cost_of(pool.tasks.start_batch_size) < 3 * pool.reference_cost)
    ratios: dict[float, np.ndarray] = {}
    undone = np.zeros(len(quiet), dtype=bool)  # references have no guard
    for rate in (0.0, 0.6):
        rng = np.random.default_rng(0)
        episodes = QuadraticEpisodes(pool, len(quiet), rng, noise_rate=rate)
        episodes.begin(np.arange(len(quiet)), quiet)
        transition = episodes.step(None)
        ratio = np.where(transition.ended, transition.ratio, np.nan)
        while np.isnan(ratio).any():
            transition = episodes.step(np.zeros(len(quiet)))
            assert episodes.signals is not None
            undone |= (np.asarray(episodes.signals.rolled_back) > 0) & np.isnan(ratio)
            new = transition.ended & np.isnan(ratio)
            ratio[new] = transition.ratio[new]
        ratios[rate] = ratio
    expected = (pool.cost_of(pool.tasks.start_batch_size) / pool.reference_cost)[quiet]
    assert undone.mean() < 0.05
    kept = ~undone
    np.testing.assert_allclose(ratios[0.0][kept], expected[kept], rtol=1e-6)
    # Measuring is charged: up to a second pass for a few of the steps.
    arrived = kept & (ratios[0.6] < UNREACHED_RATIO)
    assert (ratios[0.6] >= expected * (1 - 1e-6))[kept].all()
    assert 1.0 < np.mean((ratios[0.6] / expected)[arrived]) < 1.2


def test_observations_are_bounded_and_equal_seeds_give_equal_episodes(pool: TaskPool) -> None:
    first, second = (QuadraticVecEnv(pool, 16, seed=5, actions=ACTIONS) for _ in range(2))
    np.testing.assert_array_equal(first.reset(), second.reset())
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(3, size=16)
        one, two = first.step(actions), second.step(actions)
        assert np.abs(np.asarray(one[0])).max() <= 1.0
        for a, b in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_replaced_episode_begins_afresh(pool: TaskPool) -> None:
    env = QuadraticVecEnv(pool, 64, seed=2, actions=ACTIONS)
    env.reset()
    for _ in range(200):
        _, _, ended, infos = env.step(np.full(64, 1))
        for i in np.flatnonzero(ended):
            ended_at = counted(infos[i]["ratio"])
            assert infos[i]["episode"]["r"] == pytest.approx(-ended_at, rel=1e-5)
            # Only the new episode's first chunk is on its clock.
            assert env.episodes.runs.steps[i] == 1
            assert env.lengths[i] == 0


def test_a_pool_survives_its_file(pool: TaskPool, tmp_path: Path) -> None:
    pool.save(tmp_path / "pool.npz")
    again = TaskPool.load(tmp_path / "pool.npz")
    np.testing.assert_array_equal(again.fixed_cost, pool.fixed_cost)
    np.testing.assert_array_equal(again.tasks.noise, pool.tasks.noise)
    with np.load(tmp_path / "pool.npz") as data:
        rest = {name: data[name] for name in data.files if name != "task_plan_known"}
    np.savez(tmp_path / "older.npz", **rest)
    with pytest.raises(ConfigurationError, match=r"lacks task_plan_known.*Delete it"):
        TaskPool.load(tmp_path / "older.npz")


def test_smaller_batches_than_the_base_reach_the_target_where_that_is_asked_for() -> None:
    """The switch of the selection: with probability one no task is left that lacks the slack."""
    asked = Distribution().replace(probability_slack_adam=1.0, probability_slack_sgd=1.0)
    free = asked.replace(probability_slack_adam=0.0, probability_slack_sgd=0.0)
    lacking = {}
    for name, distribution in (("asked", asked), ("free", free)):
        pool = make_pool(300, seed=4, distribution=distribution)
        tasks = pool.tasks
        smaller = tasks.base_batch_size / np.where(tasks.adaptive > 0, 4.0, 2.0)
        allowed = smaller >= tasks.min_batch_size
        lacking[name] = np.isinf(pool.cost_of(np.maximum(smaller, 1.0))[allowed]).mean()
    assert lacking["asked"] == 0.0
    assert lacking["free"] > 0.3
