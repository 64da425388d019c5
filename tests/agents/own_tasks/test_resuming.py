"""A training that is stopped in one stage after the other ends as one that is not."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlbatch.agents.evaluate.rows import read_results
from rlbatch.agents.executor import Executor, SerialExecutor
from rlbatch.agents.own_tasks.outcome import Outcome
from rlbatch.agents.own_tasks.plan import Plan, save_plan
from rlbatch.agents.own_tasks.training import train_on_tasks
from rlbatch.policy.file import load_policy

CHEAP = f"{Path(__file__).parents[1] / 'evaluate' / 'cheap_task.py'}:make"
PLAN = Plan(tasks=(CHEAP,), starts=(0.5, 1.0), seeds=2)
MODULE = "rlbatch.agents.own_tasks.training"


@contextmanager
def serial(*_: object, **__: object) -> Generator[Executor]:
    yield SerialExecutor()


def train(out: Path, stop_in: str) -> Outcome | None:
    """Train, and stop as by Ctrl-C once a run of that stage has ended."""

    def display(what: str, done: float, total: float, left: float) -> None:
        if what == stop_in and 0 < done < total:
            raise KeyboardInterrupt

    try:
        return train_on_tasks(PLAN, out, minutes=1.0, jobs=1, display=display)
    except KeyboardInterrupt:
        load_policy(out / "policy.safetensors")  # usable, at any moment
        return None


@pytest.mark.slow
def test_a_training_goes_on_from_wherever_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.open_executor", serial)
    monkeypatch.setattr(f"{MODULE}._SHORTEST_SEGMENT", 1e9)  # no network: that is tested elsewhere
    monkeypatch.setattr(
        "rlbatch.agents.own_tasks.budget.SCHEDULES_SHARE", 0.05
    )  # seconds are enough
    monkeypatch.setattr(time, "monotonic", time.process_time)  # whatever else the machine does
    save_plan(PLAN, tmp_path)
    stages = ("fixed sizes", "comparing", "schedules", "testing")
    assert [train(tmp_path, stage) for stage in stages] == [None] * 4

    names = ("validation.jsonl", "curves/seeds.json", "learning/schedules/runs.jsonl")
    before = [(tmp_path / name).read_text() for name in names]
    results = read_results(tmp_path / "evaluation")
    outcome = train(tmp_path, "nowhere")
    assert [(tmp_path / name).read_text() for name in names] == before
    assert outcome is not None
    after = read_results(tmp_path / "evaluation")
    assert 0 < len(results) < len(after)
    assert all(row in after for row in results)
    assert {row["policy"] for row in after} >= {"default", "fixed", outcome.kept.policy}
