"""A recorded run, replayed: the same observations and the same decisions."""

from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.envs.objectives import Objective
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.task import resolve_task
from rlbatch.errors import EpisodeLogError
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling
from rlbatch.testing.replay import ReplayRun, replay


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "log"
    task = resolve_task("teacher-student")
    controlled_run(
        task,
        resolve_policy("default"),
        seed=0,
        coupling=Coupling.SQRT,
        profile=resolve_profile("cpu"),
        objective=Objective(target_loss=task.target),
        start_factor=8.0,  # far from where it should be
        log_dir=folder,
    )
    return folder


def test_the_same_policy_decides_the_same(recorded: Path) -> None:
    run, made = ReplayRun(recorded), replay(recorded, resolve_policy("default"))
    assert len(made) == len(run.decisions) > 5
    for record, (vector, decision) in zip(run.decisions, made, strict=True):
        np.testing.assert_array_equal(np.array(record.observation, dtype=np.float32), vector)
        assert record.requested_log2_change == decision.log2_change


def test_another_policy_sees_the_same_and_decides_its_own(recorded: Path) -> None:
    stays = replay(recorded, resolve_policy("fixed"))
    assert all(decision.log2_change == 0 for _, decision in stays)
    assert any(record.requested_log2_change for record in ReplayRun(recorded).decisions)


def test_an_episode_that_is_over_says_so(recorded: Path, tmp_path: Path) -> None:
    run = ReplayRun(recorded)
    while not run.finished:
        run.advance()
    with pytest.raises(EpisodeLogError, match="over"):
        run.advance()
    with pytest.raises(EpisodeLogError):
        ReplayRun(tmp_path / "nothing")
