"""`rlbatch sweep` as a stranger uses it: wrong names, Ctrl-C, a kill, two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlbatch.cli import main
from tests.agents.evaluate import cheap_task

CHEAP = f"{cheap_task.__file__}:make"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def sweep(out: Path, *more: str, task: str = CHEAP) -> list[str]:
    return ["sweep", "--task", task, "--out", str(out), *more]


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def finished(out: Path) -> list[tuple[int, float, int]]:
    path = out / "trials.sqlite"
    if not path.exists():
        return []
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT batch_size, rate, seed FROM trials").fetchall()
    except sqlite3.OperationalError:  # its tables are not there yet
        return []


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlbatch", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A test run in the background of a script ignores SIGINT, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_doubling_recommends_and_explains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sweep(tmp_path / "out", "--first", "2")) == 0

    text = capsys.readouterr().out
    found = result(tmp_path / "out")
    size = found["recommended"]["batch_size"]
    assert f"Take batch size {size} with a learning rate of" in text
    assert found["learning_rate"] == pytest.approx(0.02 * (size / 8) ** 0.5)
    assert found["search_cost"] == pytest.approx(sum(p["spent"] for p in found["points"]))
    best = min(p["cost"]["value"] for p in found["points"] if p["complete"] == p["runs"])
    assert found["recommended"]["cost"]["value"] <= best * 1.01
    assert (tmp_path / "out" / "search.png").stat().st_size > 5000


def test_a_finished_search_is_printed_again_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(sweep(out, "--json")) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(sweep(out, "--json")) == 0
    again = json.loads(capsys.readouterr().out)

    assert first["repeated"] == 0
    assert again["repeated"] == again["trials"] == first["trials"]
    assert {**again, "repeated": 0} == first


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--objective", "epochs"), "An objective is"),
        (("--efficiency", "0.5"), "nothing to weigh"),
        (("--objective", "epochs=1", "--efficiency", "2"), "between 0"),
        (("--profile", "abacus"), "Unknown profile"),
        (("--memory-limit", "much"), "number of bytes"),
        (("--largest", "41"), "--largest must lie"),
        (("--first", "0"), "first size"),
        (("--seeds", "0"), "seeds"),
        (("--jobs", "0"), "jobs"),
        (("--method", "bandit", "--tune-lr"), "--tune-lr"),
        (("--objectives", "cost", "quality"), "bayesian"),
    ],
)
def test_wrong_use_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert main(sweep(tmp_path / "out", *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_not_there_and_a_folder_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sweep(tmp_path / "out", task="digits-mpl")) == 2
    assert "Did you mean 'digits-mlp'" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(sweep(tmp_path)) == 2
    assert main(sweep(tmp_path / "other")) == 0
    assert main(sweep(tmp_path / "other", "--seeds", "2")) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_target_out_of_reach_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = CHEAP.replace(":make", ":hopeless")

    assert main(sweep(tmp_path / "out", "--max-steps", "50", "--seeds", "1", task=task)) == 1
    assert "nothing to recommend" in capsys.readouterr().out
    assert result(tmp_path / "out")["recommended"] is None


def test_what_does_not_fit_is_not_recommended(tmp_path: Path) -> None:
    limit = ("--memory-limit", "500B", "--first", "2", "--patience", "9")
    assert main(sweep(tmp_path / "out", *limit)) == 0

    found = result(tmp_path / "out")
    fits = {point["batch_size"]: point["fits"] for point in found["points"]}
    assert list(fits.values()) == sorted(fits.values(), reverse=True)
    assert not all(fits.values())
    assert fits[found["recommended"]["batch_size"]]


def held_task(folder: Path) -> str:
    """Return a task whose search cannot end before the file `hold` beside it is gone."""
    shutil.copy(cheap_task.__file__, folder)
    (folder / "hold").touch()
    return f"{folder / 'cheap_task.py'}:held"


@pytest.mark.slow
def test_a_killed_search_loses_no_trial_and_repeats_none(tmp_path: Path) -> None:
    task, out = held_task(tmp_path), tmp_path / "killed"
    more = ("--tune-lr", "--seeds", "2", "--first", "8")
    process = start(sweep(out, *more, "--jobs", "2", task=task))
    while process.poll() is None and len(finished(out)) < 6:  # three rates of the first size
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    time.sleep(1.5)  # worker processes notice that nobody waits for them
    kept = finished(out)

    (tmp_path / "hold").unlink()
    assert main(sweep(out, *more, task=task)) == 0
    assert main(sweep(tmp_path / "whole", *more, task=task)) == 0
    found, whole = result(out), result(tmp_path / "whole")
    assert found["repeated"] == len(kept) >= 6
    assert found["trials"] == whole["trials"] > len(kept)
    for name in ("points", "recommended", "sentence", "search_cost"):
        assert found[name] == whole[name]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_leaves_no_process(tmp_path: Path) -> None:
    out, task = tmp_path / "out", held_task(tmp_path)
    process = start(sweep(out, "--first", "8", "--seeds", "2", "--jobs", "2", task=task))
    while process.poll() is None and len(finished(out)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    # Until all that hold its standard error are gone, so the workers, too.
    _, error = process.communicate(timeout=600)

    assert process.returncode == 130
    assert b"Stopped. What was finished is kept." in error
    assert b"Traceback" not in error
    assert [size for size, _, _ in finished(out)] == [8, 8]


@pytest.mark.slow
def test_two_processes_share_a_bandit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ("--method", "bandit", "--runs", "16")
    processes = [start(sweep(out, *more)) for _ in range(2)]
    errors = [process.communicate(timeout=6000)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    with sqlite3.connect(out / "bandit.sqlite") as connection:
        rows = connection.execute("SELECT id, batch_size, running, cost FROM runs").fetchall()
    assert [row[0] for row in rows] == list(range(1, 17))
    assert not any(row[2] for row in rows)
    # Each recurrence has its own seed, its number, and is in the store once.
    assert sorted((seed, size) for size, _, seed in finished(out)) == [row[:2] for row in rows]
