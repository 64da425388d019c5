"""The command from its first run to its table: stopped by Ctrl-C, resumed, and nothing beside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlbatch.agents.evaluate.rows import read_results
from rlbatch.policy.file import load_policy

CHEAP_FILE = Path(__file__).parents[1] / "evaluate" / "cheap_task.py"
ROOT = Path(__file__).parents[3]


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlbatch", "train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background lets them ignore it.
        preexec_fn=lambda: signal.signal(  # noqa: PLW1509 - no threads run here
            signal.SIGINT, signal.default_int_handler
        ),
    )


@pytest.mark.slow
def test_a_stopped_training_leaves_a_policy_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "my tasks"
    folder.mkdir()
    shutil.copy(CHEAP_FILE, folder / "a task.py")
    out = folder / "out of it"
    begin = ["--task", "~/a task.py:make", "--out", "out of it", "--jobs", "2"]
    short = ["--minutes", "6", "--seeds", "2", "--start", "0.5", "1"]

    process = started([*begin, *short], folder)
    while not list(out.glob("learning/segment1/events.*")):  # in the middle of learning
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 130, stderr
    assert "what is best so far" in stderr
    assert " left" in stderr.splitlines()[1]  # the time, from the first line on
    assert "(kept)" not in stdout
    load_policy(out / "policy.safetensors")

    # From another folder, without naming the task again.
    process = started(["--out", str(out), "--resume", "--minutes", "0.1", "--jobs", "2"], tmp_path)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "(kept)" in stdout
    assert {path.name for path in folder.iterdir()} == {"a task.py", "out of it"}

    kept = load_policy(out / "policy.safetensors").card.results
    assert kept["validation"][kept["kept"]] <= kept["validation"]["shipped policy"]
    rows = read_results(out / "evaluation")
    assert {row["seed"] for row in rows} == {0, 1}
    assert {"default", "fixed"} <= {row["policy"] for row in rows}
    assert kept["kept"] in (out / "policy.md").read_text()
