"""The live environment: Gymnasium's and SB3's checkers, determinism, and what the rewards add up
to."""

import math
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, check_reset_seed_determinism, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlbatch.envs.batch_size_env import BatchSizeEnv
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.environment import QuadraticEnv
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError, RlbatchError
from tests.agents.evaluate.cheap_task import make as cheap_task

IDS = ("rlbatch/BatchSize-v0", "rlbatch/BatchSizeQuadratic-v0")
STAY = BatchSizeEnv().actions_log2.index(0.0)


@pytest.mark.parametrize("name", [*IDS, "rlbatch/BatchSizeWallClock-v0"])
def test_both_checkers_pass_without_a_warning(name: str) -> None:
    env = gymnasium.make(f"rlbatch.envs:{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_two_episodes_of_one_seed_are_bit_equal(name: str) -> None:
    one, two = (gymnasium.make(name).unwrapped for _ in range(2))
    first, second = one.reset(seed=11), two.reset(seed=11)
    np.testing.assert_array_equal(first[0], second[0])
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.integers(one.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
        a, b = one.step(action), two.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
        if a[2] or a[3]:
            break


def counted(ratio: float) -> float:
    """What a ratio counts in the reward."""
    return ratio if ratio <= 1.0 else 1.0 + math.log(ratio)


def run_episode(env: gymnasium.Env, action: int) -> tuple[float, bool, bool, dict]:
    total = 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total, terminated, truncated, info


def test_the_rewards_after_the_first_chunk_sum_to_minus_its_share_of_the_ratio() -> None:
    env = BatchSizeEnv()
    _, info = env.reset(seed=0)
    first = info["ratio"]
    total, terminated, truncated, info = run_episode(env, STAY)
    assert terminated
    assert not truncated
    assert info["reached"]
    assert total == pytest.approx(counted(first) - counted(info["ratio"]))
    # The reference of a fixed setting is the default batch size's own cost, on another seed.
    assert 0.3 < info["ratio"] < 3.0


def test_a_run_that_spends_its_limit_is_truncated_at_the_cap() -> None:
    env = BatchSizeEnv(
        "digits-mlp-sgd", lr_coupling="linear", start=0.03125, profile="accelerator-4096"
    )
    _, info = env.reset(seed=0)
    first = info["ratio"]
    total, terminated, truncated, info = run_episode(env, STAY)
    assert truncated
    assert not terminated
    assert not info["reached"]
    assert total == pytest.approx(counted(first) - counted(UNREACHED_RATIO))


def test_the_action_multiplies_the_batch_size_within_bounds() -> None:
    env = BatchSizeEnv(start=1.0)
    _, info = env.reset(seed=0)
    before = info["batch_size"]
    _, _, _, _, info = env.step(np.int64(env.actions_log2.index(1.0)))
    assert info["batch_size"] == 2 * before
    for _ in range(3):
        _, _, terminated, _, info = env.step(np.int64(0))
        if terminated:
            break
    assert info["batch_size"] >= 1


ENVIRONMENTS: list[type[BatchSizeEnv] | type[QuadraticEnv]] = [BatchSizeEnv, QuadraticEnv]


@pytest.mark.parametrize("made", ENVIRONMENTS)
@pytest.mark.parametrize("action", [7, -1, 0.0, 1.5, "stay", None, [0, 1], True, float("nan")])
def test_an_action_that_is_none_is_refused(made: type[BatchSizeEnv], action: object) -> None:
    env = made()
    _, before = env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="An action must be a whole number from 0 to 6"):
        env.step(action)  # pyright: ignore[reportArgumentType]
    _, _, _, _, info = env.step(np.int64(STAY))  # nothing was done to the run
    assert info["batch_size"] == before["batch_size"]


@pytest.mark.parametrize("made", ENVIRONMENTS)
def test_wrong_use_is_said(made: type[BatchSizeEnv]) -> None:
    with pytest.raises(ConfigurationError, match="No run is in progress"):
        made().step(np.int64(0))
    for actions in ((), (0.0, math.inf), ("a",)):
        with pytest.raises(ConfigurationError, match="actions must be finite"):
            made(actions=actions)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="render_mode must be"):
        made(render_mode="human")
    with pytest.raises(ConfigurationError, match="got 'speed'"):
        made().reset(options={"speed": 3})
    with pytest.raises(ConfigurationError, match="options must be a dictionary"):
        made().reset(options=[3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="No run is in progress"):
        made(render_mode="ansi").render()
    env = made()
    env.reset(seed=0)
    run_episode(env, STAY)
    with pytest.raises(ConfigurationError, match="run has finished"):
        env.step(np.int64(STAY))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, "start multiplies the batch size"),
        ({"start": -2.0}, "start multiplies the batch size"),
        ({"planned_steps": 0}, "planned_steps must be a whole number"),
        ({"planned_steps": 1.5}, "planned_steps must be a whole number"),
        ({"planned_steps": "many"}, "planned_steps must be a whole number"),
        ({"start": math.nan}, "start multiplies the batch size"),
        ({"start": 1e9}, "to a size from 1 to"),
        ({"start": "8"}, "start multiplies the batch size"),
        ({"lr_coupling": "cubic"}, "Unknown coupling 'cubic'"),
        ({"profile": "gpu"}, "Unknown profile 'gpu'"),
        ({"task": "digits-mpl"}, "Did you mean 'digits-mlp'"),
        ({"task": 3}, "A task is given as its name"),
        ({"source": 3}, "source must be a function"),
    ],
)
def test_settings_that_are_none_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(RlbatchError, match=message):
        BatchSizeEnv(**arguments)


def test_what_a_source_draws_is_a_setting() -> None:
    env = BatchSizeEnv(source=lambda rng: "digits-mlp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="must return an EpisodeSetting"):
        env.reset(seed=0)


def test_a_task_is_a_name_a_path_or_an_object() -> None:
    """All three are the same runs."""
    file = Path(__file__).parents[1] / "agents/evaluate/cheap_task.py"
    episodes = []
    for task in (cheap_task(), f"{file}:make"):
        env = BatchSizeEnv(task)
        episodes.append([env.reset(seed=4)[0], *(env.step(np.int64(STAY))[:4] for _ in range(3))])
    assert data_equivalence(episodes[0], episodes[1], exact=True)
    assert isinstance(resolve_task(cheap_task()), Task)


def test_the_start_is_an_option_of_one_run() -> None:
    env = BatchSizeEnv()
    assert env.reset(seed=0, options={"start": 4.0})[1]["batch_size"] == 128
    assert env.reset(seed=0)[1]["batch_size"] == 32
    with pytest.raises(ConfigurationError, match="start multiplies"):
        env.reset(options={"start": 0})
    with pytest.raises(ConfigurationError, match="pool must be a TaskPool"):
        QuadraticEnv(pool=512)  # pyright: ignore[reportArgumentType]
    single = QuadraticEnv()
    assert single.reset(seed=0, options={"task": 5})[1]["task"] == 5
    with pytest.raises(ConfigurationError, match="from 0 to 511"):
        single.reset(options={"task": 512})


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_helpers_find_equal_seeds_equal(name: str) -> None:
    check_reset_seed_determinism(gymnasium.make(name).unwrapped)
    one, two = gymnasium.make(name), gymnasium.make(name)
    assert data_equivalence(one.reset(seed=2), two.reset(seed=2), exact=True)
    assert data_equivalence(one.step(STAY), two.step(STAY), exact=True)
    assert not data_equivalence(one.reset(seed=2), two.reset(seed=3), exact=True)


@pytest.mark.parametrize("name", IDS)
def test_info_tells_of_the_run_and_both_modes_show_it(name: str) -> None:
    texts, figures = (gymnasium.make(name, render_mode=mode) for mode in ("ansi", "rgb_array"))
    spent = 0.0
    _, info = texts.reset(seed=1)
    figures.reset(seed=1)
    before = np.asarray(figures.render())
    for _ in range(5):
        assert info["cost"] > spent
        spent = info["cost"]
        assert info["train_loss"] > 0
        assert info["val_loss"] is None or info["val_loss"] > 0
        assert info["noise_scale"] is None or info["noise_scale"] > 0
        *_, info = texts.step(STAY)
        figures.step(STAY)
    line = str(texts.render())
    assert f"batch size {info['batch_size']}" in line
    assert f"step {info['steps']}" in line
    after = np.asarray(figures.render())
    assert after.shape == (400, 600, 3)
    assert after.dtype == np.uint8
    assert (after != before).any()


def test_on_the_wall_clock_staying_takes_as_many_steps_as_on_a_profile() -> None:
    """And costs about the reference, which is the same on another seed."""
    lengths, ratios = [], []
    for name in ("rlbatch/BatchSize-v0", "rlbatch/BatchSizeWallClock-v0"):
        env = gymnasium.make(name)
        env.reset(seed=0)
        run_episode(env, STAY)
        info = env.unwrapped.episode.info()  # pyright: ignore[reportAttributeAccessIssue]
        assert info["reached"]
        lengths.append(info["steps"])
        ratios.append(info["ratio"])
    assert lengths[0] == lengths[1]
    assert 0.2 < ratios[1] < 3.9  # whatever else the machine does
