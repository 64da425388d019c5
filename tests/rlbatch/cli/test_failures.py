"""What a stranger sees when something goes wrong: one sentence, no traceback, files untouched."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbatch import files
from rlbatch.cli import _failures, main
from rlbatch.cli._shared import require_possible_folder
from rlbatch.cli.train import Command as Train
from rlbatch.envs.curves import CurveTable
from rlbatch.errors import ConfigurationError, EpisodeLogError, PolicyFileError
from rlbatch.policy.file import save_policy
from rlbatch.testing import random_policy

CHEAP_FILE = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
CHEAP = f"{CHEAP_FILE}:make"
RUN = ["run", "--task", CHEAP, "--policy", "fixed"]
BENCH = ["bench", "--task", CHEAP, "--policy", "fixed", "goodput", "--seeds", "2"]
DEMO = ["demo", "--policy", "fixed", "--seeds", "1"]
TRAIN = ["train", "--recipe", "smoke"]

BAD_TASKS = f"""
import sys
sys.path.insert(0, {str(CHEAP_FILE.parent)!r})
from dataclasses import replace
import torch
from torch.utils.data import TensorDataset
import cheap_task

def loss(model, batch):
    x, y = batch
    return ((model(x[:, :2]) - y) ** 2).mean()  # the model takes 6

def bad_loss():
    return replace(cheap_task.make(), loss=loss)

def leaves():
    raise SystemExit(3)

def larger_than_the_data():
    rows = TensorDataset(torch.ones(5, 6), torch.ones(5, 1))
    return replace(cheap_task.make(), train_set=rows, max_batch_size=None)

def negative():
    return replace(cheap_task.make(), batch_size=-3)

def limit_below_the_start():
    return replace(cheap_task.make(), batch_size=8, max_batch_size=4)
"""


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """Return the path of a file with tasks that go wrong."""
    path = tmp_path / "bad_tasks.py"
    path.write_text(BAD_TASKS)
    return str(path)


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(BAD_TASKS.splitlines(), start=1) if text in line)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence."""
    shown = capsys.readouterr()
    sentences = [line for line in shown.err.splitlines() if line.startswith("rlbatch: ")]
    assert len(sentences) == 1
    assert "Traceback" not in shown.err
    return sentences[0]


def test_an_error_in_a_task_names_its_place_in_the_users_file(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "--task", f"{bad}:bad_loss", "--policy", "fixed", "--out"]

    assert main([*arguments, str(tmp_path / "one")]) == 1
    sentence = said(capsys)
    assert f"RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x2 and 6x1) in {bad}" in (
        sentence
    )
    assert f"line {line_of('the model takes 6')}." in sentence

    monkeypatch.setenv("RLBATCH_TRACEBACK", "1")
    assert main([*arguments, str(tmp_path / "two")]) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.splitlines()[-1] == sentence


@pytest.mark.slow
def test_an_error_in_another_process_names_its_place_too(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "--task", f"{bad}:bad_loss", "--policy", "fixed", "--seeds", "2"]

    assert main([*arguments, "--jobs", "2", "--out", str(tmp_path / "out")]) == 1
    assert f"in {bad}, line {line_of('the model takes 6')}." in said(capsys)


def test_a_task_cannot_end_the_command_silently(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", f"{bad}:leaves", "--policy", "fixed"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "ended the process with sys.exit(3)" in said(capsys)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("larger_than_the_data", "batch_size must be at most the 5 samples of train_set, got 8"),
        ("negative", "batch_size must be a whole number of samples, at least 1, got -3"),
        ("limit_below_the_start", "max_batch_size must be at least batch_size=8, got 4"),
    ],
)
@pytest.mark.parametrize("command", ["run", "bench"])
def test_impossible_sizes_in_a_task_are_named(
    command: str,
    function: str,
    message: str,
    bad: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [command, "--task", f"{bad}:{function}", "--policy", "fixed"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def of_database(statements: str) -> sqlite3.OperationalError:
    """Return what SQLite raises at these statements."""
    with pytest.raises(sqlite3.OperationalError) as raised:
        sqlite3.connect(":memory:").executescript(statements)
    return raised.value


FULL = of_database("PRAGMA max_page_count=1; CREATE TABLE a (b); CREATE TABLE c (d);")
WRAPPED = RuntimeError("of a library that keeps a database")
WRAPPED.__cause__ = FULL


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigurationError("a is wrong"), 2, "a is wrong"),
        (PolicyFileError("p.safetensors: damaged"), 2, "p.safetensors: damaged"),
        (EpisodeLogError("log\nis  gone"), 1, "log is gone"),
        (OSError(errno.ENOSPC, "No space left", "out/x"), 1, "out/x failed: No space left. Make"),
        (OSError(errno.ENOSPC, "No space left"), 1, "failed: No space left. Make room"),
        (PermissionError(errno.EACCES, "Denied", "out/x"), 1, "out/x failed: Denied. Permit it"),
        (FileNotFoundError(errno.ENOENT, "None", "x"), 1, "x failed: None. Check the path"),
        (OSError(errno.EIO, "Broken disk", "x"), 1, "x failed: Broken disk. It happened in"),
        (OSError("odd"), 1, "OSError: odd in"),
        (MemoryError(), 1, "not enough memory"),
        (BrokenProcessPool("a process died"), 1, "A worker process was killed"),
        (FULL, 1, "database failed: database or disk is full. Make room"),
        (WRAPPED, 1, "database failed: database or disk is full. Make room"),
        (of_database("SELECT a FROM b"), 1, "OperationalError: no such table: b in"),
        (KeyError("loss"), 1, "KeyError: 'loss' in"),
        (AssertionError(), 1, "AssertionError in"),
    ],
)
def test_every_error_is_one_sentence_with_what_to_do(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _failures.report(error) == code
    sentence = said(capsys)
    assert words in sentence
    assert sentence.count("\n") == 0


def test_a_connection_that_breaks_inside_is_no_reader_that_went_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("rlbatch.cli.tasks.Command.run", fail)
    assert main(["tasks"]) == 1
    assert "Broken pipe" in said(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tasks", "policies --json", "--version"])
def test_a_full_disk_behind_the_output_is_told(command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m rlbatch {command} > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device. Make room" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["policies", "policies --json", "--version"])
def test_a_reader_that_goes_away_is_no_error(command: str, unbuffered: str) -> None:
    program = f"{sys.executable} -m rlbatch {command}"
    done = subprocess.run(
        ["bash", "-c", f"{program} | (exec 0<&-; sleep 0); echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_benchmark_goes_on_after_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some writes fit, then half of one, then none: and afterwards nothing is lost or doubled."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert main([*BENCH, "--out", str(whole)]) == 0
    capsys.readouterr()

    room = 4000
    write = os.write

    def write_what_fits(descriptor: int, content: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, content[:room])
        room -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", write_what_fits)
        assert main([*BENCH, "--out", str(torn)]) == 1
    assert "No space left on device. Make room and repeat the command" in said(capsys)

    assert main([*BENCH, "--out", str(torn)]) == 0
    assert (torn / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()


@pytest.mark.parametrize("arguments", [RUN, BENCH, DEMO, TRAIN], ids=lambda a: a[0])
def test_a_folder_inside_of_a_file_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    out = tmp_path / "file" / "a" / "b"

    assert main([*arguments, "--out", str(out)]) == 2
    assert f"{out} cannot be a folder: {tmp_path / 'file'} is a file" in said(capsys)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("arguments", [RUN, BENCH, DEMO, TRAIN], ids=lambda a: a[0])
def test_a_folder_that_may_not_be_written_is_refused_at_once(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlbatch.cli._shared.os.access", lambda path, mode: path != tmp_path)

    assert main([*arguments, "--out", str(tmp_path / "a" / "b")]) == 2
    assert f"no permission to write in {tmp_path}" in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_be_made_is_accepted(tmp_path: Path) -> None:
    require_possible_folder(tmp_path)
    require_possible_folder(tmp_path / "a" / "b")
    require_possible_folder(Path("not-there-yet"))
    assert list(tmp_path.iterdir()) == []


def test_shared_references_are_checked_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    arguments = [*BENCH, "--out", str(tmp_path / "out"), "--references", str(tmp_path / "file")]
    assert main(arguments) == 2
    assert "--references" in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n', r"results.jsonl, line 1 is no result of a benchmark (KeyError: 'task')"),
        ("[1]\n", r"results.jsonl, line 1 is no result of a benchmark (TypeError"),
        ("rubbish\n", "results.jsonl, line 1 is damaged"),
    ],
)
def test_results_of_another_kind_are_refused_and_kept(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*BENCH, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    capsys.readouterr()
    (tmp_path / "out" / "results.jsonl").write_text(content)

    assert main(arguments) == 2
    assert message in said(capsys)
    assert (tmp_path / "out" / "results.jsonl").read_text() == content


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}", ""])
def test_damaged_settings_of_a_benchmark_are_refused_and_kept(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench.json").write_text(content)
    assert main([*BENCH, "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in said(capsys)
    assert (tmp_path / "bench.json").read_text() == content


@pytest.mark.parametrize(
    ("seed", "code"),
    [("-1", 2), (str(2**32), 2), ("99999999999999999999999", 2), ("4294967295", 0)],
)
def test_seeds_have_limits(
    seed: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--seed", seed, "--out", str(tmp_path / "out")]) == code
    if code:
        assert f"seed={seed}" in said(capsys)


def test_simulated_tasks_are_for_benchmarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", "simulated:3", "--policy", "fixed"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "'simulated:3' is for `rlbatch bench`" in said(capsys)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "folder", "missing"])
@pytest.mark.parametrize("command", ["run", "bench", "demo", "train"])
def test_broken_policy_files_are_refused_before_anything_is_written(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.safetensors"
    save_policy(path, random_policy(np.random.default_rng(0)))
    content = {"truncated": path.read_bytes()[:1500], "empty": b"", "text": b"hello " * 99}
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(content[kind])
    arguments = {
        "run": [*RUN[:3], "--policy", str(path)],
        "bench": [*BENCH[:3], "--policy", "fixed", str(path)],
        "demo": ["demo", "--policy", str(path)],
        "train": [*TRAIN, "--start-from", str(path)],
    }
    assert main([*arguments[command], "--out", str(tmp_path / "out")]) == 2
    sentence = said(capsys)
    assert str(path) in sentence
    assert sentence.endswith(".") or "rlbatch train" in sentence
    assert not (tmp_path / "out").exists()


Prepare = Callable[[Path], list[str]]


def nothing_to_resume(folder: Path) -> list[str]:
    return ["--resume"]


def damaged_checkpoint(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "progress.json").write_text("{}")
    (folder / "out" / "checkpoint.zip").write_bytes(b"PK half")
    return ["--resume"]


def training_there(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "progress.json").write_text("{}")
    return []


def no_curves(folder: Path) -> list[str]:
    return ["--recipe", "default"]


def missing_curves(folder: Path) -> list[str]:
    return ["--recipe", "default", "--curves", str(folder / "nowhere")]


def curves_of_another_task(folder: Path) -> list[str]:
    table = CurveTable("x", np.zeros((1, 2), int), np.ones(1, int), np.ones((1, 1, 1), np.float32))
    table.save(folder / "digits-mlp.npz")
    return ["--recipe", "default", "--curves", str(folder)]


def no_checkpoint(folder: Path) -> list[str]:
    (folder / "text.zip").write_text("no archive")
    return ["--start-from", str(folder / "text.zip")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (nothing_to_resume, "There is nothing to resume in"),
        (damaged_checkpoint, "checkpoint.zip is missing or damaged"),
        (training_there, "already holds a training. Go on with it by adding --resume"),
        (no_curves, "needs their learning curves"),
        (missing_curves, "No learning curves at"),
        (curves_of_another_task, "holds the learning curves of 'x', expected 'digits-mlp'"),
        (no_checkpoint, "is neither a policy file (.safetensors) nor the checkpoint.zip"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_would_stop_a_training_after_hours_is_refused_at_once(
    prepare: Prepare, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    recipe = [] if "--recipe" in more else ["--recipe", "smoke"]

    assert main(["train", *recipe, *more, "--out", str(tmp_path / "out")]) == 2
    assert message in said(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_training_that_was_killed_at_its_beginning_may_be_repeated(tmp_path: Path) -> None:
    from rlbatch.agents.recipes import resolve_recipe

    recipe = resolve_recipe("smoke")
    (tmp_path / "pool.npz").write_bytes(b"")
    (tmp_path / "stage0").mkdir()
    Train(out=tmp_path)._check_files(recipe)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        Train(out=tmp_path)._check_files(recipe)


@pytest.fixture
def log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main([*RUN[:3], "--policy", "goodput", "--out", str(tmp_path / "log")]) == 0
    capsys.readouterr()
    return tmp_path / "log"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "There is no run.json"),
        ("run.json", b"{", "run.json is not valid JSON"),
        ("run.json", b"[]", "run.json was not written by rlbatch"),
        ("decisions.jsonl", b"rubbish\n{}\n", "2 lines (1, 2) cannot be read"),
        ("decisions.jsonl", b"\xff\x00\n{}\n", "2 lines (1, 2) cannot be read"),
    ],
)
def test_a_damaged_log_is_shown_with_what_is_wrong_with_it(
    name: str,
    content: bytes | None,
    message: str,
    log: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        (log / name).unlink()
    else:
        (log / name).write_bytes(content)
    assert main(["inspect", str(log)]) == 0
    assert message in capsys.readouterr().out


def test_a_folder_of_which_nothing_can_be_read(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log / "run.json").write_bytes(b"{")
    (log / "decisions.jsonl").write_bytes(b"rubbish\n")
    assert main(["inspect", str(log)]) == 1
    assert "holds nothing that can be read" in said(capsys)


def test_a_log_cut_anywhere_is_shown_as_far_as_it_goes(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (log / "decisions.jsonl").read_bytes()
    ends = [0, 1, len(whole) // 3, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1]
    for end in ends:
        (log / "decisions.jsonl").write_bytes(whole[:end])
        assert main(["inspect", str(log)]) == 0
        assert main(["inspect", str(log), "--json"]) == 0
    (log / "decisions.jsonl").unlink()
    assert main(["inspect", str(log)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_same_command_after_kill_minus_nine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark goes on to the same bytes; a run says that its folder is taken."""
    arguments = [*BENCH[:-1], "12", "--out"]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rlbatch", *arguments, str(out)], stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not _lines(out / "results.jsonl"):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= _lines(out / "results.jsonl") < 24

    assert main([*arguments, str(out)]) == 0
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    killed, whole = (folder / "results.jsonl" for folder in (out, tmp_path / "whole"))
    assert killed.read_bytes() == whole.read_bytes()

    log = tmp_path / "log"
    assert main([*RUN, "--out", str(log)]) == 0
    content = (log / "decisions.jsonl").read_bytes()
    (log / "decisions.jsonl").write_bytes(content[: len(content) // 2])  # as a killed run leaves it
    capsys.readouterr()
    assert main([*RUN, "--out", str(log)]) == 2
    assert f"{log} already exists and is not an empty folder" in said(capsys)
    assert (log / "decisions.jsonl").read_bytes() == content[: len(content) // 2]
    assert json.loads((log / "run.json").read_text())["task"] == "cheap"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
