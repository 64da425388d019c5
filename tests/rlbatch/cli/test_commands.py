"""What the commands print and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlbatch.cli import main
from rlbatch.log.episode_log import read_episode

CHEAP_FILE = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
CHEAP = f"{CHEAP_FILE}:make"


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    rows = {row["task"]: row for row in json_lines(capsys.readouterr().out)}
    assert rows["digits-mlp"]["batch_size"] == 32
    assert rows["digits-mlp"]["samples"] == 1400

    assert main(["tasks"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in rows)


def test_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--json"]) == 0
    rows = {row["policy"]: row for row in json_lines(capsys.readouterr().out)}
    assert {"default", "fixed", "goodput"} <= set(rows)
    assert rows["fixed"]["parameters"] == "batch_size=None"
    assert all(row["what"] for row in rows.values())

    assert main(["policies"]) == 0
    assert "goodput" in capsys.readouterr().out


def test_run_writes_a_log_that_inspect_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log"
    arguments = ["run", "--task", CHEAP, "--policy", "goodput", "--start", "2", "--out", str(out)]

    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    episode = read_episode(out)
    assert result["reached"] is True
    assert result["start_batch_size"] == 16
    assert result["final_val_loss"] <= 0.3
    assert result["steps"] == episode.records[-1].step
    assert result["cost"] == episode.records[-1].cost
    assert episode.run["policy"] == "goodput"
    assert episode.run["lr_coupling"] == "sqrt"

    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == result["steps"]
    assert main(["inspect", str(out), "--last", "2"]) == 0
    table = capsys.readouterr().out
    assert "target 0.3 reached" in table
    assert "goodput" in table


def test_a_run_that_misses_its_target_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", f"{CHEAP_FILE}:hopeless", "--policy", "fixed"]

    assert main([*arguments, "--max-steps", "20", "--out", str(tmp_path / "log")]) == 1
    assert "did not reach the target" in capsys.readouterr().out


def test_a_run_with_a_schedule_needs_no_more_than_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", f"{CHEAP_FILE}:scheduled", "--policy", "fixed"]

    assert main([*arguments, "--out", str(tmp_path / "log"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reached"] is True
    factors = [r.signals["schedule_factor"] for r in read_episode(tmp_path / "log").records]
    assert factors[0] > factors[-1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("objective", "profile"), [("budget=400", "samples"), ("budget=0.1", "cpu")]
)
def test_a_run_on_a_budget(
    objective: str, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", CHEAP, "--policy", "goodput", "--objective", objective]

    assert main([*arguments, "--profile", profile, "--out", str(tmp_path / "log"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cost"] >= float(objective.partition("=")[2])


def test_bench_prints_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "--task", CHEAP, "--policy", "fixed", "goodput", "--start", "0.125", "1"]
    arguments += ["--seeds", "2", "--out", str(out)]

    assert main([*arguments, "--json"]) == 0
    shown = capsys.readouterr().out
    assert json_lines(shown) == json_lines((out / "results.jsonl").read_text())
    assert len(json_lines(shown)) == 8
    assert {row["start_batch_size"] for row in json_lines(shown)} == {1, 8}
    assert (out / "ratios.png").stat().st_size > 1000

    assert main(arguments) == 0  # nothing is left to run: the tables of what is there
    table = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    for policy in summary["policies"]:
        assert f"{policy['ratio']['value']:.3f}" in table
    assert f"{summary['pairs'][0]['ratio']['value']:.3f}" in table


@pytest.mark.slow
def test_demo_measures_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["demo", "--task", CHEAP, "--start", "1", "--profile", "cpu", "--seeds", "1"]
    arguments += ["--jobs", "1", "--policy", "fixed", "--out", str(out)]

    assert main([*arguments, "--json"]) == 0
    (start,) = json.loads(capsys.readouterr().out)["starts"]
    assert start["controller"]["mean"] == pytest.approx(start["staying"]["mean"])
    assert start["batch_size"] == 8
    assert start["sizes"] == [8]
    assert (out / "demo.png").is_file()
    assert read_episode(Path(start["log"])).records[-1].event == "end"

    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "the controller took as much time as staying" in told
    assert f"{start['best']['mean']:.2f}" in told
    assert "the batch size was left at 8" in told  # the decision in words
    commands = "rlbatch train --task", "rlbatch run --task", f"rlbatch inspect {out}"
    for command in (*commands, f"rlbatch report {out} -o"):
        assert command in told.replace("\\\n", "")


def test_demo_takes_a_new_folder_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlbatch.cli.demo import _new_folder

    monkeypatch.chdir(tmp_path)
    assert _new_folder() == Path("rlbatch-demo")
    Path("rlbatch-demo").mkdir()
    assert _new_folder() == Path("rlbatch-demo-2")


@pytest.mark.slow
def test_train_writes_a_policy_that_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--recipe", "smoke", "--out", str(tmp_path / "trained")]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(tmp_path / "trained" / "policy.safetensors")

    arguments = ["run", "--task", CHEAP, "--policy", path, "--out", str(tmp_path / "log")]
    assert main([*arguments, "--json"]) in (0, 1)  # it has hardly been trained
    records = read_episode(tmp_path / "log").records
    assert records[0].probabilities is not None
    assert sum(records[0].probabilities) == pytest.approx(1.0, abs=1e-5)
    assert "action_grid" in read_episode(tmp_path / "log").run
