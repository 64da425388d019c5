"""Ranks of which one is killed again and again end where undisturbed ones do."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlbatch.errors import ConfigurationError
from rlbatch.log.episode_reader import read_episode
from tests.rlbatch.control.rank_runs import (
    ROWS,
    Job,
    attempts_of,
    launch,
    results_of,
    steps_of,
    train,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WORLD_SIZE = 2
PLACES = ("arrive", "backward", "step", "save", "rename")
KILLS = int(os.environ.get("RLBATCH_KILLS", "5"))  # each costs a start of two ranks


def start(job: Job, die: tuple[int, int, str] | None = None) -> list[int | None]:
    (job.folder / "meet").unlink(missing_ok=True)
    return launch(train, WORLD_SIZE, job, die)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_killed_at_random_steps_are_the_undisturbed_ranks(tmp_path: Path, kind: str) -> None:
    settings = {"lr_coupling": "adascale", "micro_batch_size": 9, "noise_rate": 2.0}
    whole = Job(
        tmp_path / "whole",
        kind,
        "adamw",
        settings=tuple(settings.items()),
        dropout=0.2,
        saves=4,
        epochs=max(16, 3 * KILLS),  # more steps than the kills let pass
        bits=True,
    )
    killed = replace(whole, folder=tmp_path / "killed")
    for job in (whole, killed):
        job.folder.mkdir()
    assert start(whole) == [0] * WORLD_SIZE
    draw = random.Random(3)
    for number in range(KILLS):
        place = PLACES[number % len(PLACES)]
        victim = 0 if place == "rename" else draw.randrange(WORLD_SIZE)
        codes = start(killed, (victim, draw.randint(1, 7), place))
        assert codes[victim] == -signal.SIGKILL
    assert not (killed.folder / "0.pt").exists()
    assert start(killed) == [0] * WORLD_SIZE

    batches = steps_of(whole, WORLD_SIZE)
    for epoch in range(whole.epochs):
        seen = sorted(row for batch in batches if batch.epoch == epoch for row in batch.rows)
        assert seen == list(range(ROWS))
    for rank in range(WORLD_SIZE):
        expected, found = attempts_of(whole, rank), attempts_of(killed, rank)
        assert found.keys() == expected.keys()
        for step, attempts in found.items():
            # Also the steps that were lost had the samples, sizes, rates and losses of the
            # undisturbed run, whose policy goes another way where one bit differs.
            assert attempts == expected[step] * len(attempts)
        assert sum(map(len, found.values())) > len(found)
    for one, other in zip(
        results_of(whole, WORLD_SIZE), results_of(killed, WORLD_SIZE), strict=True
    ):
        assert torch.equal(one["weights"], other["weights"])
        assert one["last"] == other["last"]
    logs = [(job.folder / "log" / "decisions.jsonl").read_text() for job in (whole, killed)]
    assert logs[0] == logs[1]
    records = read_episode(killed.folder / "log").records
    assert [record.index for record in records] == list(range(len(records)))
    assert len({record.batch_size for record in records}) > 2


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_damage_around_a_resume_is_undone_as_in_the_undisturbed_ranks(
    tmp_path: Path, kind: str
) -> None:
    """Two chunks are rolled back, from step 13 on and from step 17 on.

    The ranks stop before both and within both, there with weights that are damaged already.
    """
    settings = {"lr_coupling": "sqrt", "first_chunk_steps": 2, "noise_rate": 2.0}
    whole = Job(
        tmp_path / "whole",
        kind,
        "adamw",
        settings=tuple(settings.items()),
        dropout=0.2,
        saves=1,
        spoilt=(13, 19),
        epochs=6,
    )
    killed = replace(whole, folder=tmp_path / "killed")
    for job in (whole, killed):
        job.folder.mkdir()
    assert start(whole) == [0] * WORLD_SIZE
    for victim, steps, saved in (
        *((0, 13, "step13"), (1, 2, "step15"), (0, 2, "step17")),
        *((1, 1, "step18"), (0, 2, "step20")),
    ):
        codes = start(killed, (victim, steps, "arrive"))
        assert codes[victim] == -signal.SIGKILL
        assert (killed.folder / "latest").read_text() == saved
    assert start(killed) == [0] * WORLD_SIZE
    logs = [(job.folder / "log" / "decisions.jsonl").read_text() for job in (whole, killed)]
    assert logs[0] == logs[1]
    records = read_episode(killed.folder / "log").records
    assert [record.step for record in records if record.event == "rollback"] == [17, 21]
    for rank in range(WORLD_SIZE):
        expected, found = attempts_of(whole, rank), attempts_of(killed, rank)
        assert found.keys() == expected.keys()
        assert all(seen == expected[step] * len(seen) for step, seen in found.items())
    for one, other in zip(
        results_of(whole, WORLD_SIZE), results_of(killed, WORLD_SIZE), strict=True
    ):
        assert torch.equal(one["weights"], other["weights"])
        assert torch.isfinite(one["weights"]).all()
        assert one["last"] == other["last"]


def test_states_of_different_steps_are_refused_on_every_rank(tmp_path: Path) -> None:
    job = Job(tmp_path, "ddp", saves=4, epochs=2)
    assert start(job) == [0] * WORLD_SIZE
    latest = job.folder / (job.folder / "latest").read_text()
    shutil.copy(job.folder / "step4" / "rank1.pt", latest / "rank1.pt")
    (job.folder / "meet").unlink()
    assert launch(refused, WORLD_SIZE, job) == [0] * WORLD_SIZE
    for rank in range(WORLD_SIZE):
        said = (job.folder / f"refused{rank}").read_text()
        assert f"got 4 to {latest.name.removeprefix('step')}. Let a checkpoint" in said


def refused(rank: int, world_size: int, job: Job) -> None:
    """Train, and write down what is said against it."""
    try:
        train(rank, world_size, job)
    except ConfigurationError as error:
        (job.folder / f"refused{rank}").write_text(str(error))
