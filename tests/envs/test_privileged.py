"""What the critic is shown, against the pool and the settings it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlbatch.envs.privileged import (
    CHANGE_COST,
    PRIVILEGED_NAMES,
    PRIVILEGED_SIZE,
    REGRET_SCALE,
    costs_from_here,
    privileged_information,
    regrets,
)
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.observation import OBSERVATION_SIZE

ACTIONS = (-1.0, 0.0, 1.0)


def test_each_feature_says_what_its_name_says() -> None:
    row = privileged_information(*(np.array([v]) for v in (1.0, 64.0, 32.0, 8.0, 16.0, 2.0)))[0]
    found = dict(zip(PRIVILEGED_NAMES, row.tolist(), strict=True))
    assert found == pytest.approx(
        {
            "spent": 0.25,
            "reference_steps": 0.5,
            "best_vs_size": 0.25,
            "best_vs_base": 0.125,
            "regret": 0.25,
        }
    )


def test_it_is_finite_and_bounded_whatever_is_unknown() -> None:
    rows = privileged_information(
        *(np.array([v, v]) for v in (9.0, np.nan, 1e9, 1.0, 1e-9, np.inf))
    )
    assert rows.shape == (2, PRIVILEGED_SIZE)
    assert rows.dtype == np.float32
    assert np.abs(rows).max() <= 1.0


def test_a_regret_is_what_keeping_a_size_costs_over_the_best_and_a_little_for_the_change() -> None:
    costs = np.array([2.0, 1.0, 3.0, np.inf])  # of 8, 16, 32 and 64
    wanted = np.array([1.5, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 9.0])
    between = [2.0, 1.5, 1.0, 0.5, 0.0, np.log2(3.0), 2.0, 2.0]  # log2; 4 counts for unreached
    expected = between + CHANGE_COST * np.abs(wanted - 4.0)
    found = REGRET_SCALE * regrets(costs, 3.0, 4.0, wanted)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    both = regrets(
        np.stack([costs, 5 * costs]),
        np.array([3.0, 4.0]),
        np.array([4.0, 5.0]),
        np.stack([wanted, wanted + 1]),
    )
    np.testing.assert_allclose(REGRET_SCALE * both, [expected, expected], rtol=1e-6)
    alone = REGRET_SCALE * regrets(np.array([7.0]), 3.0, 3.0, np.array([3.0, 4.0]))
    np.testing.assert_allclose(alone, [0.0, 1.0 + CHANGE_COST], rtol=1e-6)


def test_the_policys_own_features_come_first_and_stay_the_same() -> None:
    pool = make_pool(32, 0)
    plain, privileged = (
        QuadraticVecEnv(pool, 8, 3, ACTIONS, privileged=flag) for flag in (False, True)
    )
    seen: Any = plain.reset()
    told: Any = privileged.reset()
    for _ in range(30):
        np.testing.assert_array_equal(told[:, :OBSERVATION_SIZE], seen)
        index = privileged.episodes.task_index
        best = 2.0 ** pool.fixed_cost[index].argmin(axis=1)
        size = np.asarray(privileged.episodes.batch_size)
        expected = np.clip((np.log2(best) - np.log2(size)) / 8, -1, 1)
        np.testing.assert_allclose(told[:, OBSERVATION_SIZE + 2], expected, atol=1e-6)
        _require_regrets(privileged, told[:, OBSERVATION_SIZE + PRIVILEGED_SIZE :])
        actions = np.arange(8) % 3
        seen = plain.step(actions)[0]
        told, _, ended, infos = privileged.step(actions)
        for i in np.flatnonzero(ended):
            assert infos[i]["terminal_observation"].shape == told.shape[1:]


def test_costs_from_the_start_are_those_of_the_fixed_sizes() -> None:
    sizes, steps = np.array([16.0, 32.0, 64.0]), np.array([1.0, 1.1, 1.3])
    costs = np.array([400.0, 230.0, 180.0]) * steps
    np.testing.assert_allclose(costs_from_here(sizes, costs, steps, 0.0), costs)


def test_from_the_middle_on_a_size_uses_the_samples_of_half_of_it() -> None:
    sizes, steps = np.array([16.0, 32.0, 64.0, 128.0, 256.0]), 1.0 + np.arange(5) / 10
    samples = np.array([6400.0, 6400.0, 8000.0, 16000.0, np.inf])
    found = costs_from_here(sizes, samples / sizes * steps, steps, 0.5)
    expected = samples[[0, 0, 1, 2, 3]] / sizes * steps
    np.testing.assert_allclose(found, expected)


def test_what_never_arrives_counts_as_many_samples_but_not_without_end() -> None:
    sizes, steps = np.array([16.0, 32.0]), np.ones(2)
    found = costs_from_here(sizes, np.array([100.0, np.inf]), steps, 0.0)
    np.testing.assert_allclose(found, [100.0, 100.0 * 16.0 / 2.0])


def test_regrets_are_told_only_where_they_are_asked_for() -> None:
    pool = make_pool(32, 0)
    all_told, without = (
        QuadraticVecEnv(pool, 8, 3, ACTIONS, privileged=True, with_regrets=flag)
        for flag in (True, False)
    )
    told, same = np.asarray(all_told.reset()), np.asarray(without.reset())
    end = OBSERVATION_SIZE + PRIVILEGED_SIZE
    assert told[:, end:].any()
    assert not same[:, end:].any()
    np.testing.assert_array_equal(told[:, :end], same[:, :end])


def _require_regrets(env: QuadraticVecEnv, found: np.ndarray) -> None:
    """Of the sizes after each action, from the pool's costs, one by one."""
    for i, task in enumerate(env.episodes.task_index):
        costs = env.pool.fixed_cost[task]
        low, high = (getattr(env.pool.tasks, f"{end}_batch_size")[task] for end in ("min", "max"))
        for action, change in enumerate(ACTIONS):
            size = np.clip(np.asarray(env.episodes.batch_size)[i] * 2.0**change, low, high)
            log2 = np.log2(size)
            if log2 == round(log2):  # some are between two
                ratio = min(costs[round(log2)] / costs.min(), 4.0)
                moved = np.abs(log2 - np.log2(np.asarray(env.episodes.batch_size)[i]))
                expected = (np.log2(ratio) + CHANGE_COST * moved) / REGRET_SCALE
                assert found[i, action] == pytest.approx(expected, abs=1e-6)
