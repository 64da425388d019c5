"""Runs of two hosts with two ranks each, joined by a cable of their own (`hosts.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_reader import read_episode
from tests.rlbatch.control.host_program import BASE, PHASES, STEPS, scripted_job
from tests.rlbatch.control.hosts import NoHostsError, TwoHosts, two_hosts
from tests.rlbatch.control.rank_runs import BASE as SCRIPTED_BASE
from tests.rlbatch.control.rank_runs import ROWS, attempts_of, decisions_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PROGRAM = Path(__file__).with_name("host_program.py")
RANKS = 4


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    try:
        with two_hosts() as made:
            yield made
    except NoHostsError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


def test_a_killed_rank_and_an_elastic_restart_change_no_batch(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    hosts.torchrun(PROGRAM, str(tmp_path), "scripted")
    job = scripted_job(tmp_path)
    assert (tmp_path / "died").exists()
    made = [attempts_of(job, rank) for rank in range(RANKS)]
    assert max(len(attempts) for attempts in made[0].values()) > 1  # some steps were done again
    in_force, epochs = SCRIPTED_BASE, dict[int, list[int]]()
    sizes: list[int] = []
    for step in sorted(made[0]):
        for attempts in made:  # what was done again is what had been done
            assert all(attempt == attempts[step][0] for attempt in attempts[step])
        seen = [attempts[step][-1] for attempts in made]
        after, epoch, _ = seen[0]
        assert all(other[:2] == [after, epoch] for other in seen)  # one decision on all ranks
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


def test_a_slow_rank_and_a_slow_link_show_in_costs_and_decisions(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    hosts.torchrun(PROGRAM, str(tmp_path), "measured")
    costs: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name in PHASES:
        folder = tmp_path / name
        seen = [json.loads((folder / f"sizes{rank}.json").read_text()) for rank in range(RANKS)]
        assert all(other == seen[0] for other in seen)
        assert len(seen[0]) == STEPS
        records = decisions(folder)
        first = records[0]
        assert first.batch_size_before == BASE
        costs[name] = number(first, "chunk_cost") / number(first, "steps")
        sizes[name] = float(np.log2(seen[0]).mean())
        for record in records:
            if record.effective_step is not None and 0 < record.effective_step < STEPS:
                assert seen[0][record.effective_step - 1] == record.batch_size
    # The same batch size costs more than where nobody is late, and larger ones pay then.
    assert min(costs["rank"], costs["link"]) > 1.5 * costs["plain"], costs
    assert min(sizes["rank"], sizes["link"]) > sizes["plain"], sizes


def number(record: DecisionRecord, name: str) -> float:
    return float(np.asarray(record.signals[name]))


def decisions(folder: Path) -> list[DecisionRecord]:
    return [r for r in read_episode(folder / "log").records if r.event == "decision"]
