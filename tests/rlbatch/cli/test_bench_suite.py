"""`rlbatch bench` for so many epochs, and for the field suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlbatch.agents.evaluate import suite
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.cli import main
from rlbatch.envs.tasks.field import DEVELOPMENT, LOCKED, QUICK

CHEAP = f"{Path(__file__).parents[2] / 'agents' / 'evaluation' / 'cheap_task.py'}:scheduled"


def test_epochs_print_time_at_equal_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "--task", CHEAP, "--policy", "fixed", "ramp", "--seeds", "1"]
    arguments += ["--objective", "epochs=4", "--profile", "accelerator-512:untold"]

    assert main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Runs of so many epochs, accelerator-512:untold" in out
    assert "time at equal loss" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    (clock,) = summary["epochs"]
    assert clock == "accelerator-512:untold"
    assert {one["policy"] for one in summary["epochs"][clock]} == {"fixed", "ramp"}
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (ramp,) = [row for row in rows if row["policy"] == "ramp"]
    assert ramp["batch_size_max"] == 32
    assert ramp["time_to_default"] < 1
    assert main([*arguments, "--json", "--out", str(tmp_path)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_a_suite_is_in_place_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["bench", "--policy", "fixed", "--out", str(tmp_path / "new")]
    assert main(start) == 2
    assert "either tasks with --task or a suite with --suite" in capsys.readouterr().err
    assert main([*start, "--task", CHEAP, "--suite", "field:dev"]) == 2
    assert main([*start, "--suite", "field:all"]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("selection", "warned"),
    [("field", LOCKED), ("field:locked", LOCKED), ("field:dev", ()), ("field:quick", ())],
)
def test_locked_tasks_are_announced(
    selection: str,
    warned: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def stop(parts: Any, *_: Any, **__: Any) -> Any:
        seen.extend(parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run_suite", stop)
    assert main(["bench", "--suite", selection, "--policy", "fixed", "--out", str(tmp_path)]) == 130
    out = capsys.readouterr().out
    assert ("Locked tasks of the field suite" in out) == bool(warned)
    for name in (*DEVELOPMENT, *LOCKED):
        assert (f"field:{name}" in out) == (name in warned)
    assert seen


def test_parts_of_the_quick_suite() -> None:
    *planned, target = suite.suite_parts("field:quick", ["fixed", "ramp"])

    assert [part.name for part in planned] == [f"epochs-{name}" for name in QUICK]
    assert target.settings == BenchSettings(
        tasks=tuple(f"field:{name}" for name in QUICK),
        policies=("fixed", "ramp"),
        profiles=("cpu", "accelerator-4096:untold"),
        starts=(0.125, 1.0, 8.0),
        seeds=1,
    )
    for part in planned:
        assert part.settings.tasks == (f"field:{part.name.removeprefix('epochs-')}",)
        assert part.settings.seeds == 2
    assert {part.settings.seeds for part in suite.suite_parts("field", ["fixed"], seeds=3)} == {3}


def test_a_suite_runs_its_parts_and_puts_their_results_together(tmp_path: Path) -> None:
    common: dict[str, Any] = {"tasks": (CHEAP,), "policies": ("fixed",), "seeds": 1}
    parts = [
        suite.SuitePart("epochs-cheap", BenchSettings(**common, objective="epochs=4")),
        suite.SuitePart("target", BenchSettings(**common)),
    ]
    names: list[str] = []
    rows = suite.run_suite(parts, tmp_path, on_part=names.append)

    assert names == ["epochs-cheap", "target"]
    assert {row["objective"] for row in rows} == {"epochs=4", "target"}
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert suite.run_suite(parts, tmp_path) == rows
    assert (tmp_path / "references").is_dir()
