"""`rlbatch inspect`: what it prints and writes."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlbatch.cli import main
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_record, write_log

LINES = (EXAMPLE / "decisions.jsonl").read_text().splitlines()


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_run_is_shown_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLE)]) == 0

    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[0].startswith("example-log: task digits-mlp-sgd, policy default")
    assert any("learned: x8 (p=0.97)" in line for line in shown)


def test_a_wide_terminal_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(EXAMPLE), "--last", "3"]) == 0

    shown = capsys.readouterr().out
    assert "noise scale   size  asked  applied" in shown
    assert "15 earlier decisions are left out." in shown


def test_one_decision_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLE), "--step", "3"]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("After step 2 (36 samples) the batch size was raised from 32 to 256.")
    assert "Pushes: " in shown
    assert "It would have " in shown


def test_before_the_first_decision_there_is_nothing_to_explain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(EXAMPLE), "--step", "0"]) == 0
    assert capsys.readouterr().out == "Nothing had been decided by step 0.\n"


def test_several_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLE), str(LOGS / "live")]) == 0
    shown = capsys.readouterr().out
    assert "loss at equal samples" in shown
    assert "live parts from example-log after" in shown

    assert main(["inspect", str(EXAMPLE), str(LOGS / "live"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in content["runs"]] == ["example-log", "live"]


def test_tables_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "log.csv"
    assert main(["inspect", str(EXAMPLE), "--csv", str(target)]) == 0
    with target.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(LINES)

    assert main(["inspect", str(EXAMPLE), "--csv", str(target)]) == 2
    assert "is already there" in capsys.readouterr().err
    pytest.importorskip("pyarrow")
    assert main(["inspect", str(EXAMPLE), "--parquet", str(tmp_path / "log.parquet")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--last", "0"], "--last must be at least 1"),
        (["--step", "-1"], "--step must not be negative"),
        ([str(EXAMPLE), "--follow"], "--follow takes one folder"),
        (["--step", "1", "--json"], "--step and --json exclude each other"),
        (["--csv", "x.csv", "--json"], "--json and --csv/--parquet exclude each other"),
        (["--csv", f"{__file__}/x.csv"], "Name another one with --csv"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLE), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_table_that_fails_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(logs: object) -> Iterator[list[object]]:
        yield []
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rlbatch.inspect.frames.rows", fail)
    target = tmp_path / "new" / "log.csv"

    assert main(["inspect", str(EXAMPLE), "--csv", str(target)]) == 1
    assert "Make room and repeat the command" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []  # it can be repeated


def test_what_is_no_log_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in {"bench.json": "rlbatch report", "other": "Name the folder"}.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        assert main(["inspect", str(folder)]) == 1
        assert told in capsys.readouterr().err
        assert main(["inspect", str(folder / name)]) == 1
        assert "it is a file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--step", "5"], ["--last", "1"]])
def test_escape_sequences_do_not_reach_the_terminal(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]52;c;aGk=\x07\x9b2J"
    folder = write_log(tmp_path / "log", [make_record(0, reasons=[evil])], task=evil, policy=evil)

    assert main(["inspect", str(folder), *arguments]) == 0
    shown = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(shown.out + shown.err)


@pytest.mark.slow
def test_a_run_in_progress_is_followed_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "run.json").write_bytes((EXAMPLE / "run.json").read_bytes())
    path = folder / "decisions.jsonl"
    path.write_text("".join(line + "\n" for line in LINES[:2]))
    command = [sys.executable, "-m", "rlbatch", "inspect", str(folder), "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(5)]  # title, head, and the first two
    assert "learned: x8 (p=0.59)" in shown[-1]

    with path.open("a") as file:
        for line in LINES[2:]:
            file.write(line + "\n")
            file.flush()
            time.sleep(0.02)
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "END; target 0.12 reached" in rest
    assert "target 0.12 reached" in rest.splitlines()[-9]  # the summary follows
