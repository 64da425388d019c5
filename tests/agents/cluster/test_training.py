"""Curves, and trainings with live runs, on a real Ray cluster: the same as on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'rlbatch[ray]'")

from rlbatch.agents.curves import make_curves
from rlbatch.agents.executor import open_executor
from rlbatch.agents.own_tasks.fixed_costs import all_costs
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.rule_networks import size_policy
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.agents.ppo import train
from rlbatch.agents.ray_executor import open_cluster
from rlbatch.agents.ray_runs import ActorServer, open_servers
from rlbatch.agents.recipes import Recipe, Stage
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.remote_vec_env import RemoteVecEnv
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import save_policy
from tests.agents.cluster.test_cluster import TwoNodes
from tests.envs.test_live_vec_env import make
from tests.envs.test_settings import NAMES, write_tables

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CHEAP = f"{Path(__file__).parents[1] / 'evaluate' / 'cheap_task.py'}:make"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    nodes = TwoNodes()
    with open_cluster(nodes.address):  # one connection for all
        yield nodes.address
    nodes.close()


def test_curves_are_the_same(address: str, tmp_path: Path) -> None:
    lines: list[str] = []
    for name, cluster in (("here", None), ("cluster", address)):
        make_curves(
            *(tmp_path / name, (), {"random": 2}),
            cluster=cluster,
            on_table=lambda line, done, total: lines.append(line.rpartition(",")[0]),
        )
    assert sorted(lines[:2]) == sorted(lines[2:])
    found = [sorted(path.iterdir()) for path in (tmp_path / "here", tmp_path / "cluster")]
    assert [path.name for path in found[0]] == [path.name for path in found[1]]
    for ours, theirs in zip(*found, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_training_by_a_recipe_is_the_same(address: str, tmp_path: Path) -> None:
    write_tables(tmp_path)
    stage = Stage(timesteps=8, simulated=0, real=2, rollout_steps=4, minibatch=8, epochs=1)
    recipe = Recipe("e", (stage,), tasks=NAMES, policy_layers=(8,))
    here = train(recipe, tmp_path / "here", curves=tmp_path)
    there = train(recipe, tmp_path / "cluster", curves=tmp_path, cluster=address)
    assert here.read_bytes() == there.read_bytes()


def test_runs_on_own_tasks_are_the_same_and_need_no_common_folder(
    address: str, tmp_path: Path
) -> None:
    plan = Plan(tasks=(CHEAP,), starts=(0.5, 1.0), seeds=2)
    policy = tmp_path / "size.safetensors"
    save_policy(policy, size_policy(1, DEFAULT_ACTIONS, PolicyCard(noise_rate=0.0)))
    candidates = [Candidate("size", str(policy), "size"), Candidate("stay", "fixed", "rule")]
    files: list[list[str]] = []
    for name, cluster in (("here", None), ("cluster", address)):
        out = tmp_path / name
        with open_executor(2, cluster) as executor:
            costs = all_costs(
                *(plan, out, executor), until=np.inf, patience=np.inf, tick=lambda: None
            )
            runs = Validation(plan, costs, out / "runs.jsonl")
            runs.run(candidates, 1, executor, lambda done, total: None)
        files.append([f"{path.name}: {line}" for path in out.iterdir() for line in lines(path)])
    assert len(files[0]) > 2 * 4
    assert sorted(files[0]) == sorted(files[1])


def lines(path: Path) -> list[str]:
    """Return a file's rows without what they took on this machine."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows]


def test_live_runs_go_on_when_their_worker_is_lost(address: str) -> None:
    with open_servers(address) as (start, room):
        assert room == 2
        here, there = make(), RemoteVecEnv(make, start)
        np.testing.assert_array_equal(here.reset(), there.reset())
        actions = np.array([0, 1, 2])
        for ours, theirs in zip(here.step(actions)[:3], there.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert isinstance(there._server, ActorServer)
        there._server.close()  # as if its node were gone
        with pytest.warns(RuntimeWarning, match="another takes its place"):
            seen, _, ended, _ = there.step(actions)
        assert ended.all()
        np.testing.assert_array_equal(seen, make(1).reset())
        there.close()
