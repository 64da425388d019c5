"""Training by a recipe: checkpoints, a real kill and resume, refusals, and the exported policy."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import RECIPES, Recipe, Stage, resolve_recipe
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.simulator.vector_env import QuadraticVecEnv
from rlbatch.errors import ConfigurationError, RlbatchError, UnknownNameError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.file import load_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Network
from rlbatch.testing import simple_signals
from tests.agents.tiny import ROLLOUT, TINY
from tests.envs.test_settings import NAMES, write_tables


def test_the_policy_for_epochs_is_trained_on_real_runs(tmp_path: Path) -> None:
    write_tables(tmp_path)
    stage = Stage(timesteps=8, simulated=0, real=2, rollout_steps=4, minibatch=8, epochs=1)
    recipe = Recipe("e", (stage,), tasks=NAMES, policy_layers=(8,), objective="epochs")
    policy = load_policy(train(recipe, tmp_path / "out", curves=tmp_path))
    assert policy.card.objectives == ("epochs",)
    assert replace(recipe, objective="target").objectives == ("target", "budget")
    assert TINY.objectives == ("target",)  # its simulated runs have no budgets
    with pytest.raises(ConfigurationError, match="no objective `epochs`"):
        replace(TINY, objective="epochs")
    with pytest.raises(ConfigurationError, match="target or epochs, got 'budget'"):
        replace(TINY, objective="budget")


def test_a_training_goes_on_when_a_process_with_runs_dies(tmp_path: Path) -> None:
    write_tables(tmp_path)
    stage = Stage(timesteps=48, simulated=0, real=2, rollout_steps=4, minibatch=8, epochs=1)
    recipe = Recipe("e", (stage,), tasks=NAMES, policy_layers=(8,))
    seen: list[float] = []
    others = set(multiprocessing.active_children())

    def kill_one(figures: dict[str, float]) -> None:
        seen.append(figures["timesteps"])
        if len(seen) == 2:
            process = next(p for p in multiprocessing.active_children() if p not in others)
            process.kill()
            process.join()

    with pytest.warns(RuntimeWarning, match="died; another takes its place"):
        policy = train(recipe, tmp_path / "out", curves=tmp_path, report=kill_one)
    assert seen == [8, 16, 24, 32, 40, 48]
    assert policy.exists()


def test_a_guided_policy_regrets_less(trained: Path, tmp_path: Path) -> None:
    (stage,) = TINY.stages
    guided = replace(
        TINY,
        stages=(replace(stage, entropy=0.0, regret_weight=2.0, timesteps=4 * ROLLOUT, epochs=6),),
    )
    before = _regret(load_policy(trained / "policy.safetensors"))
    assert _regret(load_policy(train(guided, tmp_path / "guided"))) < 0.9 * before


def _regret(policy: LearnedPolicy) -> float:
    """Mean expected regret of its decisions in runs that go on by them."""
    env = QuadraticVecEnv(make_pool(128, 9), 128, 5, TINY.actions, privileged=True)
    total = 0.0
    told: Any = env.reset()
    for _ in range(15):
        decision, _ = policy.decide(
            told[:, :OBSERVATION_SIZE], simple_signals(), policy.initial_state((128,))
        )
        total += float((np.asarray(decision.probabilities) * told[:, -7:]).sum(axis=1).mean())
        told = env.step(np.asarray(decision.probabilities).argmax(axis=1))[0]
    return total


(STAGE,) = TINY.stages
# Members that go their own ways for long enough to be stopped in the middle.
LONG = replace(TINY, name="long", stages=(STAGE, replace(STAGE, timesteps=6 * ROLLOUT)), members=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the members' training that nothing stopped."""
    out = tmp_path_factory.mktemp("members") / "whole"
    train(LONG, out)
    return out


def test_members_begin_alike_and_go_their_own_ways(
    trained: Path, whole: Path, tmp_path: Path
) -> None:
    last = replace(STAGE, timesteps=ROLLOUT, learning_rate=1e-9)
    still = replace(TINY, name="still", stages=(STAGE, last), members=2)
    (shared,) = _weights(load_policy(trained / "policy.safetensors").members)
    for weights in _weights(load_policy(train(still, tmp_path / "still")).members):
        np.testing.assert_allclose(weights, shared, atol=1e-6)

    policy = load_policy(whole / "policy.safetensors")
    assert policy.card.recipe_hash == LONG.digest()
    first, second = _weights(policy.members)
    assert min(np.abs(first - shared).max(), np.abs(second - shared).max()) > 1e-3
    assert np.abs(first - second).max() > 1e-3
    again = load_policy(train(LONG, whole, resume=True))
    assert [w.tolist() for w in _weights(again.members)] == [first.tolist(), second.tolist()]


def _weights(members: tuple[Network, ...]) -> list[np.ndarray]:
    return [np.concatenate([layer.weight.ravel() for layer in member.policy]) for member in members]


def test_a_member_is_resumed_from_its_own_checkpoint_or_begins_with_the_shared_one(
    whole: Path, tmp_path: Path
) -> None:
    """Stopped when one member was at its second rollout, whatever the other had done."""

    class StopError(Exception):
        pass

    seen: list[tuple[float, float]] = []

    def stop(figures: dict[str, float]) -> None:
        seen.append((figures.get("member", -1.0), figures["timesteps"]))
        if figures["timesteps"] == 2 * ROLLOUT and "member" in figures:
            raise StopError

    out = tmp_path / "out"
    with pytest.raises(StopError):
        train(LONG, out, report=stop)
    assert seen[:2] == [(-1.0, ROLLOUT), (-1.0, 2 * ROLLOUT)]
    assert json.loads((out / "progress.json").read_text())["stage"] == 1
    member = int(seen[-1][0])
    saved = json.loads((out / f"member{member}" / "progress.json").read_text())
    assert saved["stage"] == 1
    assert saved["timesteps"] >= ROLLOUT
    shutil.rmtree(out / f"member{1 - member}", ignore_errors=True)  # as if it had not begun
    rest: list[tuple[float, float]] = []
    policy = load_policy(
        train(
            LONG,
            out,
            resume=True,
            report=lambda figures: rest.append((figures["member"], figures["timesteps"])),
        )
    )
    assert [steps for number, steps in rest if number == 1 - member] == [
        (i + 1) * ROLLOUT for i in range(6)
    ]
    assert [steps for number, steps in rest if number == member] == [
        steps for steps in ((i + 1) * ROLLOUT for i in range(6)) if steps > saved["timesteps"]
    ]
    np.testing.assert_array_equal(
        _weights(policy.members)[1 - member],
        _weights(load_policy(whole / "policy.safetensors").members)[1 - member],
    )


def test_a_member_that_fails_ends_the_training_and_says_why(tmp_path: Path) -> None:
    (stage,) = TINY.stages
    recipe = replace(TINY, stages=(stage, stage), members=2)

    def report(figures: dict[str, float]) -> None:
        if figures["timesteps"] == 2 * ROLLOUT:  # the shared stage has ended but for its checkpoint
            (tmp_path / "out" / "member1").write_text("in the way")

    with pytest.raises(RlbatchError, match="member 1 failed: FileExistsError"):
        train(recipe, tmp_path / "out", report=report)
    (tmp_path / "out" / "member1").unlink()
    assert len(load_policy(train(recipe, tmp_path / "out", resume=True)).members) == 2


def test_a_folder_holds_one_training(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="already holds a training"):
        train(TINY, trained)
    other = Recipe("other", TINY.stages, pool_size=32)
    with pytest.raises(ConfigurationError, match="another recipe"):
        train(other, trained, resume=True)
    with pytest.raises(ConfigurationError, match="Nothing to resume"):
        train(TINY, tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="No policy file or checkpoint at nowhere"):
        train(TINY, tmp_path, start_from=Path("nowhere"))


def test_real_runs_need_their_curves(tmp_path: Path) -> None:
    """Which is said before the stages without any, which take hours."""
    recipe = Recipe("real", (*TINY.stages, Stage(timesteps=64, simulated=0, real=1)))
    with pytest.raises(ConfigurationError, match=r"rlbatch curves"):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    absent = "cuda:17"
    with pytest.raises(ConfigurationError, match=f"{absent}.*Use cpu"):
        train(TINY, tmp_path / "out", device=absent)
    with pytest.raises(ConfigurationError, match=r"gpu.*Use cpu"):
        train(TINY, tmp_path / "out", device="gpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_a_gpu_is_used_where_there_is_one(tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    policy = load_policy(train(TINY, tmp_path / "out"))
    assert torch.cuda.max_memory_allocated() > 0
    assert policy.card.recipe_hash == TINY.digest()


def test_a_wrong_recipe_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'default'"):
        resolve_recipe("defautl")
    with pytest.raises(ConfigurationError, match="A stage needs runs"):
        Stage(timesteps=10, simulated=0, real=0)
    with pytest.raises(ConfigurationError, match="privileged_critic=True"):
        replace(RECIPES["default"], privileged_critic=False)
    with pytest.raises(UnknownNameError, match="Did you mean 'relu'"):
        replace(RECIPES["default"], activation="rleu")
    with pytest.raises(ConfigurationError, match="needs members, got 0"):
        Recipe("none", TINY.stages, members=0)
    with pytest.raises(ConfigurationError, match="members=2 and one stage"):
        Recipe("alone", TINY.stages, members=2)
    for name in ("regret_weight", "entropy"):
        with pytest.raises(ConfigurationError, match=f"{name} must not be negative"):
            replace(TINY.stages[0], **{name: -1.0})
    with pytest.raises(ConfigurationError, match="imitation must not be negative, got -1"):
        Stage(timesteps=10, simulated=1, real=0, imitation=-1)
    digests = {recipe.digest() for recipe in RECIPES.values()}
    assert len(digests) == len(RECIPES)


@pytest.mark.slow
def test_a_killed_training_resumes_and_loses_at_most_one_rollout(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen.txt"
    program = (
        "import sys; from pathlib import Path\n"
        "from rlbatch.envs.processes import keep_tensorflow_out; keep_tensorflow_out()\n"
        "from rlbatch.agents.ppo import train\n"
        "from rlbatch.agents.recipes import Recipe, Stage\n"
        "stage = Stage(timesteps=10**7, simulated=64, real=0, rollout_steps=32,\n"
        "              minibatch=512, epochs=1)\n"
        "out, seen = map(Path, sys.argv[1:])\n"
        "report = lambda figures: seen.write_text(str(int(figures['timesteps'])))\n"
        "train(Recipe('long', (stage,), pool_size=64), out, resume=out.exists(), report=report)\n"
    )

    def run_until(timesteps: int) -> int:
        process = subprocess.Popen([sys.executable, "-c", program, str(out), str(seen)])
        try:
            while not seen.exists() or int(seen.read_text() or 0) < timesteps:
                assert process.poll() is None, "the training ended by itself"
                time.sleep(0.02)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        return int(seen.read_text())

    reached = run_until(4 * ROLLOUT)
    saved = json.loads((out / "progress.json").read_text())["timesteps"]
    assert reached - ROLLOUT <= saved <= reached + ROLLOUT
    assert run_until(reached + 2 * ROLLOUT) >= reached + 2 * ROLLOUT
