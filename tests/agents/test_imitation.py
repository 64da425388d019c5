"""The regression before PPO: against a known rule, and in runs that it decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from rlbatch.agents.critic import PrivilegedCriticPolicy
from rlbatch.agents.imitation import ROUNDS, SHARPNESS, fit, held, imitate, labels
from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.privileged import PRIVILEGED_SIZE, REGRET_SCALE
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

ACTIONS = len(DEFAULT_ACTIONS)
RUNS = 64


@pytest.fixture
def model() -> PPO:
    env = QuadraticVecEnv(make_pool(64, 3), RUNS, 0, DEFAULT_ACTIONS, privileged=True)
    return PPO(
        PrivilegedCriticPolicy,
        env,
        n_steps=16,
        batch_size=256,
        seed=0,
        device="cpu",
        policy_kwargs={
            "net_arch": {"pi": [32, 32], "vf": [16]},
            "activation_fn": torch.nn.ReLU,
        },
    )


def _told(rows: int, seed: int) -> NDArray[np.float32]:
    """Rows whose best action is the last where the first feature is positive, else the first."""
    rng = np.random.default_rng(seed)
    told = rng.uniform(-1, 1, (rows, OBSERVATION_SIZE + PRIVILEGED_SIZE + ACTIONS)).astype(
        np.float32
    )
    share = np.linspace(0.0, 1.0, ACTIONS)
    up = told[:, :1] > 0
    told[:, -ACTIONS:] = np.where(up, 1.0 - share, share) / REGRET_SCALE
    return told


def _logits(model: PPO, told: NDArray[np.float32]) -> NDArray[np.float32]:
    policy: Any = model.policy
    with torch.no_grad():
        return policy.get_distribution(torch.as_tensor(told)).distribution.logits.numpy()


def test_log_odds_are_what_the_actions_cost(model: PPO) -> None:
    policy: Any = model.policy
    critic = [p.clone() for p in policy.mlp_extractor.value_net.parameters()]
    told = _told(8192, 1)
    fit(model, told, labels(model.policy, told), passes=80)
    fresh = _told(512, 2)
    fresh = fresh[np.abs(fresh[:, 0]) > 0.2]
    logits = _logits(model, fresh)
    best = np.where(fresh[:, 0] > 0, ACTIONS - 1, 0)
    assert (logits.argmax(axis=1) == best).mean() > 0.98
    odds = np.take_along_axis(logits, best[:, None], 1) - logits[:, 3:4]
    assert float(odds.mean()) == pytest.approx(0.5 * SHARPNESS, rel=0.2)
    for before, after in zip(
        critic, model.policy.mlp_extractor.value_net.parameters(), strict=True
    ):
        torch.testing.assert_close(before, after, rtol=0.0, atol=0.0)


def test_where_no_regrets_are_known_the_teachers_odds_are_the_labels(model: PPO) -> None:
    known, unknown = _told(300, 1), _told(1500, 4)
    unknown[:, -ACTIONS:] = 0.0
    policy: Any = model.policy
    with torch.no_grad():
        policy.action_net.weight.mul_(2000.0)  # odds of a trained policy, some of them large
    given = labels(policy, np.concatenate([unknown, known]))
    np.testing.assert_allclose(given[1500:], REGRET_SCALE * known[:, -ACTIONS:], rtol=1e-6)
    odds = _logits(model, unknown)
    expected = np.minimum((odds.max(axis=1, keepdims=True) - odds) / SHARPNESS, 2.0)
    assert (expected == 2.0).any()
    assert (expected < 2.0).all(axis=1).any()
    np.testing.assert_allclose(given[:1500], expected, atol=1e-5)
    assert not unknown[:, -ACTIONS:].any()


def test_runs_without_regrets_are_decided_as_before(model: PPO) -> None:
    """While the others, which can be told apart as simulated runs can, are learned from."""
    opposite = _told(8192, 1)
    opposite[:, -ACTIONS:] = opposite[:, : -ACTIONS - 1 : -1]
    fit(model, opposite, labels(model.policy, opposite), passes=40)
    told, fresh = _told(16384, 4), _told(2048, 5)
    told[told[:, 1] < 0, -ACTIONS:] = 0.0
    fit(model, told, labels(model.policy, told), passes=60)
    fresh = fresh[np.abs(fresh[:, :2]).min(axis=1) > 0.2]
    best = np.where((fresh[:, 0] > 0) == (fresh[:, 1] > 0), ACTIONS - 1, 0)
    assert (_logits(model, fresh).argmax(axis=1) == best).mean() > 0.85


def test_the_runs_it_decides_regret_less(model: PPO) -> None:
    def regret() -> float:
        env = QuadraticVecEnv(make_pool(64, 9), 64, 5, DEFAULT_ACTIONS, privileged=True)
        told: Any = env.reset()
        total = 0.0
        for _ in range(15):
            actions = model.predict(told, deterministic=True)[0]
            total += float(told[np.arange(64), actions - ACTIONS].mean())
            told = env.step(actions)[0]
        return total

    before = regret()
    model.policy.optimizer.state[next(model.policy.parameters())] = {"step": torch.tensor(1.0)}
    figures: list[dict[str, float]] = []
    imitate(model, 200 * RUNS, figures.append)
    assert regret() < 0.9 * before
    assert not model.policy.optimizer.state
    assert figures[-1]["imitation"] == 200 * RUNS


def test_even_a_few_steps_are_taken_in_every_round(
    model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(
        "rlbatch.agents.imitation.fit", lambda _, told, wanted: rows.append(len(told))
    )
    imitate(model, 1)
    assert rows == [RUNS * (i + 1) for i in range(ROUNDS)]


def test_a_resumed_training_has_imitated_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "rlbatch.agents.ppo.imitate", lambda _, steps, report, hold: calls.append(steps)
    )
    stage = Stage(3 * 512, simulated=32, real=0, rollout_steps=16, minibatch=256, imitation=7)
    recipe = Recipe("tiny", (stage,), pool_size=64, goodput_slack=None)

    def stop(figures: dict[str, float]) -> None:
        if figures["timesteps"] >= 1024:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "out", report=stop)
    train(recipe, tmp_path / "out", resume=True)
    assert calls == [7]


def test_early_in_a_known_plan_a_held_run_goes_to_the_users_size_at_most() -> None:
    """Against a plain loop over the runs."""
    rng = np.random.default_rng(0)
    told = _told(400, 3)
    size, known, done = map(OBSERVATION_NAMES.index, ("size_vs_base", "plan_known", "plan_done"))
    doublings = rng.integers(-5, 6, 400)
    told[:, size] = doublings / 8
    told[:, known] = rng.integers(0, 2, 400)
    told[:, done] = told[:, known] * rng.uniform(0.0, 0.1, 400)
    drawn = rng.integers(0, ACTIONS, 400)
    expected: list[int] = []
    for row, above, action in zip(told, doublings, drawn, strict=True):
        if row[known] and row[done] < 0.05:
            fitting = [i for i in range(ACTIONS) if above + DEFAULT_ACTIONS[i] <= 0]
            expected.append(min(int(action), max(fitting, default=0)))
        else:
            expected.append(int(action))
    got = held(drawn, told, DEFAULT_ACTIONS, 0.05)
    assert got.tolist() == expected
    assert 0 < (got != drawn).sum() < 200
    assert held(drawn, told, DEFAULT_ACTIONS, 0.0).tolist() == drawn.tolist()


def test_the_runs_of_a_regression_are_held(model: PPO, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[NDArray[np.int64]] = []
    env: Any = model.get_env()
    step = env.step
    monkeypatch.setattr(env, "step", lambda actions: (taken.append(actions), step(actions))[1])
    monkeypatch.setattr("rlbatch.agents.imitation.fit", lambda *_: None)
    imitate(model, 4 * RUNS, hold=lambda actions, told: np.full_like(actions, 2))
    assert len(taken) == 4
    assert (np.stack(taken) == 2).all()


def test_a_stage_says_in_what_share_of_a_plan_runs_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds: list[Any] = []
    monkeypatch.setattr(
        "rlbatch.agents.ppo.imitate", lambda _, steps, report, hold: holds.append(hold)
    )
    for share in (0.0, 0.05):
        stage = Stage(0, simulated=32, real=0, minibatch=256, imitation=7, held_share=share)
        train(Recipe("tiny", (stage,), pool_size=64), tmp_path / str(share))
    assert holds[0] is None
    told = np.zeros((1, OBSERVATION_SIZE), dtype=np.float32)
    told[0, OBSERVATION_NAMES.index("plan_known")] = 1.0
    assert holds[1](np.array([ACTIONS - 1]), told).tolist() == [DEFAULT_ACTIONS.index(0.0)]
    with pytest.raises(ConfigurationError, match="held_share"):
        Stage(0, simulated=32, real=0, imitation=7, held_share=1.5)
