"""Vector environments joined are the vector environment of all their environments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from rlbatch.envs.mixed_vec_env import MixedVecEnv
from rlbatch.errors import ConfigurationError
from tests.envs.counter import Counter


def dummy(*numbers: int) -> DummyVecEnv:
    return DummyVecEnv([partial(Counter, number) for number in numbers])


SPLITS = [((0, 1, 2, 3),), ((0,), (1, 2), (3,)), ((0, 1, 2), (3,))]
INDICES = st.one_of(
    st.none(), st.integers(0, 3), st.lists(st.integers(-4, 3), max_size=6), st.just(range(1, 3))
)


def pair(split: tuple[tuple[int, ...], ...]) -> tuple[MixedVecEnv, DummyVecEnv]:
    return MixedVecEnv([dummy(*numbers) for numbers in split]), dummy(0, 1, 2, 3)


def assert_equal_infos(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("split", SPLITS)
@given(
    seed=st.integers(0, 2**31),
    actions=st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), max_size=12),
)
def test_it_steps_like_one_vector_environment(
    split: tuple[tuple[int, ...], ...], seed: int, actions: list[list[int]]
) -> None:
    mixed, whole = pair(split)
    assert mixed.seed(seed) == whole.seed(seed)
    for env in (mixed, whole):
        env.set_options([{"total": number} for number in (0, 2, 1, 4)])
    np.testing.assert_array_equal(mixed.reset(), whole.reset())
    assert mixed.reset_infos == whole.reset_infos

    for action in actions:
        ours, theirs = (env.step(np.array(action)) for env in (mixed, whole))
        for mine, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(mine, other)
            assert np.asarray(mine).dtype == np.asarray(other).dtype
        assert_equal_infos(ours[3], theirs[3])
        assert mixed.reset_infos == whole.reset_infos


def test_seeds_and_options_hold_for_one_reset_only() -> None:
    mixed, whole = pair(SPLITS[1])
    for env in (mixed, whole):
        env.seed(3)
        env.set_options({"total": 2})
        env.reset()
    np.testing.assert_array_equal(mixed.reset(), whole.reset())
    actions = [np.full(4, 1)] * 6
    for action in actions:  # the generators go on, and are not seeded anew
        np.testing.assert_array_equal(mixed.step(action)[0], whole.step(action)[0])


@pytest.mark.parametrize("split", SPLITS)
@given(indices=INDICES)
def test_it_answers_for_the_environments_that_are_named(
    split: tuple[tuple[int, ...], ...], indices: Any
) -> None:
    mixed, whole = pair(split)
    for env in (mixed, whole):
        env.set_attr("note", "set", indices)
    assert mixed.get_attr("note") == whole.get_attr("note")
    assert mixed.get_attr("number", indices) == whole.get_attr("number", indices)
    ours, theirs = (env.env_method("called", 2, times=3, indices=indices) for env in (mixed, whole))
    assert ours == theirs
    assert mixed.get_attr("calls") == whole.get_attr("calls")  # nobody else was called


def test_it_knows_which_environments_are_wrapped() -> None:
    mixed = MixedVecEnv([dummy(0), DummyVecEnv([lambda: Monitor(Counter(1))]), dummy(2)])
    assert mixed.env_is_wrapped(Monitor) == [False, True, False]
    assert mixed.env_is_wrapped(Monitor, [1, 0]) == [True, False]


def test_an_environment_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        MixedVecEnv([dummy(0), dummy(1)]).get_attr("number", [2])


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one vector environment, got none"):
        MixedVecEnv([])
    other = DummyVecEnv([lambda: Counter(1, actions=4)])
    with pytest.raises(ConfigurationError, match="equal observation and action spaces"):
        MixedVecEnv([dummy(0), other])


@pytest.mark.slow
def test_environments_in_other_processes_step_side_by_side_and_are_closed() -> None:
    get_context("forkserver").set_forkserver_preload([Counter.__module__])
    counters: list[Callable[[], gymnasium.Env[Any, Any]]] = [
        partial(Counter, number) for number in (2, 3)
    ]
    outside = SubprocVecEnv(counters, start_method="forkserver")
    mixed, whole = MixedVecEnv([dummy(0, 1), outside]), dummy(0, 1, 2, 3)
    try:
        drive(mixed, whole)
    finally:
        mixed.close()
    assert not any(process.is_alive() for process in outside.processes)


def drive(mixed: VecEnv, whole: VecEnv) -> None:
    for env in (mixed, whole):
        env.seed(5)
    np.testing.assert_array_equal(mixed.reset(), whole.reset())
    for action in np.random.default_rng(0).integers(3, size=(10, 4)):
        ours, theirs = mixed.step(action), whole.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert_equal_infos(ours[3], theirs[3])
    assert mixed.get_attr("total", [3, 0]) == whole.get_attr("total", [3, 0])
