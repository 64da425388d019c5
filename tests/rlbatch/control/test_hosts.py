"""Runs of two hosts with two ranks each, joined by a cable of their own (`hosts.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_reader import read_episode
from tests.rlbatch.control.host_program import (
    BASE,
    FEATURES,
    LATE_SECONDS,
    PHASES,
    STEPS,
    scripted_job,
)
from tests.rlbatch.control.hosts import LINK_BYTES_A_SECOND, NoHostsError, two_hosts
from tests.rlbatch.control.rank_runs import BASE as SCRIPTED_BASE
from tests.rlbatch.control.rank_runs import ROWS, attempts_of, decisions_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PROGRAM = Path(__file__).with_name("host_program.py")
RANKS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one launch over two hosts has left."""
    made = tmp_path_factory.mktemp("hosts")
    try:
        with two_hosts() as hosts:
            hosts.torchrun(PROGRAM, str(made))
    except NoHostsError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    return made


def test_a_killed_rank_and_an_elastic_restart_change_no_batch(folder: Path) -> None:
    job = scripted_job(folder)
    made = [attempts_of(job, rank) for rank in range(RANKS)]
    assert max(len(attempts) for attempts in made[0].values()) > 1  # some steps were done again
    in_force, epochs = SCRIPTED_BASE, dict[int, list[int]]()
    sizes: list[int] = []
    for step in sorted(made[0]):
        for attempts in made:  # what was done again is what had been done
            assert all(attempt == attempts[step][0] for attempt in attempts[step])
        seen = [attempts[step][-1] for attempts in made]
        after, epoch, _, rate, _ = seen[0]
        assert all(other[:2] == [after, epoch] for other in seen)  # one decision on all ranks
        assert all(other[3] == rate for other in seen)
        rows = [row for other in seen for part in other[2] for row in part]
        epochs.setdefault(epoch, []).extend(rows)
        assert len(rows) == in_force or len(epochs[epoch]) == ROWS  # the rest of an epoch
        sizes.append(in_force)
        in_force = after
    assert all(sorted(rows) == list(range(ROWS)) for rows in epochs.values())
    assert len(epochs) == job.epochs
    assert len(set(sizes)) > 2
    for record in decisions_of(job):
        if record.effective_step is not None and record.effective_step < len(sizes):
            assert sizes[record.effective_step] == record.batch_size


def test_a_slow_rank_and_a_slow_link_show_in_costs_and_decisions(folder: Path) -> None:
    costs: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name in PHASES:
        ranks = [
            json.loads((folder / name / f"rank{rank}.json").read_text()) for rank in range(RANKS)
        ]
        decided = ranks[0]["decided"]
        assert all(other["decided"] == decided for other in ranks)
        delivered = np.sum([other["delivered"] for other in ranks], axis=0)
        assert delivered.tolist() == [BASE, *decided[:-1]]
        assert len(decided) == STEPS
        records = decisions(folder / name)
        assert records[0].batch_size_before == BASE
        costs[name] = number(records[0], "chunk_cost") / number(records[0], "steps")
        sizes[name] = float(np.log2(delivered[-4:]).mean())
        for record in records:
            if record.effective_step is not None and record.effective_step < STEPS:
                assert delivered[record.effective_step] == record.batch_size
    # No step can take less than its slowest rank, nor than what a host sends in a ring of ranks.
    sent = 2 * (RANKS - 1) / RANKS * 4 * FEATURES
    assert costs["rank"] > LATE_SECONDS
    assert costs["link"] > 0.8 * sent / LINK_BYTES_A_SECOND  # a bucketful goes at once
    # The same batch size costs more than where nobody is late, and larger ones pay then.
    assert min(costs["rank"], costs["link"]) > 1.5 * costs["plain"], costs
    assert min(sizes["rank"], sizes["link"]) > sizes["plain"], sizes


def number(record: DecisionRecord, name: str) -> float:
    return float(np.asarray(record.signals[name]))


def decisions(folder: Path) -> list[DecisionRecord]:
    return [r for r in read_episode(folder / "log").records if r.event == "decision"]
