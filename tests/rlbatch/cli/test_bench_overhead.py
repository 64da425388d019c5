"""`rlbatch bench overhead` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlbatch.agents.evaluate import overhead_turns
from rlbatch.cli import main

SMALL = ["--model", "mlp", "--batch-size", "4", "--policy", "fixed", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead_turns, "TURN_SECONDS", 0.0)


def test_json_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "overhead.jsonl"
    arguments = ["bench", "overhead", *SMALL, "--rounds", "6", "--json", "--out", str(out)]
    assert main(arguments) == 0

    printed = capsys.readouterr().out
    assert out.read_text() == printed
    found = [json.loads(line) for line in printed.splitlines()]
    assert [row["part"] for row in found] == ["nothing", "snapshot", "step", "decision", "run"]
    assert {row["model"] for row in found} == {"mlp"}

    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert out.read_text() == printed


def test_the_table_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-overhead", *SMALL, "--rounds", "6", "--run-steps", "70"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("nothing", "snapshot", "step", "decision", "run"))
    assert "70 steps" in shown


def test_wrong_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overhead", "--rounds", "2"]) == 2
    assert "6 rounds" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overhead", "--help"]) == 0
    assert "For example: rlbatch bench overhead" in capsys.readouterr().out
