from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlbatch.agents.evaluate.settings import BenchSettings, Group, groups, start_factors
from rlbatch.agents.evaluate.settings import parse_objective as parse
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "at least one of tasks"),
        ({"policies": ()}, "at least one of policies"),
        ({"policies": ("fixed", "fixed")}, "must differ"),
        ({"policies": ("godput",)}, "goodput"),
        ({"policies": ("fixed:many",)}, "cannot be 'many'"),
        ({"tasks": ("digits",)}, "digits-mlp"),
        ({"tasks": ("simulated:0",)}, "simulated:N"),
        ({"tasks": ("simulated:some",)}, "simulated:N"),
        ({"couplings": ("cube",)}, "LR coupling"),
        ({"profiles": ("gpu",)}, "Unknown profile"),
        ({"starts": (0.0,)}, "positive multiples"),
        ({"starts": (float("inf"),)}, "positive multiples"),
        ({"seeds": 0}, "at least 1"),
        ({"objective": "speed"}, "budget=COST"),
    ],
)
def test_what_cannot_be_run_is_refused(cheap: str, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"tasks": (cheap,), "policies": ("fixed",), **changes}

    with pytest.raises(ConfigurationError, match=message):
        BenchSettings(**arguments)


@pytest.mark.parametrize("text", ["budget=", "budget=0", "budget=-1", "budget=nan", "budget=inf"])
def test_a_budget_is_a_positive_number(text: str) -> None:
    with pytest.raises(ConfigurationError, match="positive cost"):
        parse(text)


def test_objectives_are_read() -> None:
    assert parse("target") is None
    assert parse("budget=2.5") == 2.5


def test_groups_go_seed_by_seed_and_leave_simulated_tasks_out(cheap: str) -> None:
    settings = BenchSettings(
        (cheap, "simulated:3"), ("fixed",), couplings=("sqrt", "none"), seeds=2
    )

    assert groups(settings) == [
        Group(cheap, "sqrt", 0),
        Group(cheap, "none", 0),
        Group(cheap, "sqrt", 1),
        Group(cheap, "none", 1),
    ]


def test_starts_that_clip_to_one_size_count_once(cheap: str, cheap_task: Task) -> None:
    settings = BenchSettings((cheap,), ("fixed",), starts=(1.0, 8.0, 64.0, 0.125))

    assert start_factors(settings, cheap_task) == {8: 1.0, 40: 8.0, 1: 0.125}


def test_a_changed_task_file_is_another_benchmark(tmp_path: Path, cheap: str) -> None:
    path = tmp_path / "task.py"
    path.write_text(Path(cheap.rpartition(":")[0]).read_text())
    settings = BenchSettings((f"{path}:make",), ("fixed",))
    before = settings.identity()
    assert settings.identity() == before

    path.write_text(path.read_text() + "\n# changed\n")

    assert settings.identity() != before
