"""Trainings in processes of their own: at the same time, and gone when they should be."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from rlbatch.agents.imitation import Report
from rlbatch.agents.side_by_side import train_side_by_side
from rlbatch.errors import RlbatchError

PATIENCE = 120.0


def _meet(folder: Path, mine: str, other: str, report: Report) -> None:
    """Ends only when the other one runs at the same time."""
    (folder / mine).touch()
    _wait_for(folder / other)
    report({"timesteps": 1.0})
    report({"timesteps": 2.0})


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path}")
        time.sleep(0.01)


def _fail(report: Report) -> None:
    raise ValueError("out of luck")


def _die(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _go_on(pid: Path, report: Report) -> None:
    """Tells its process, and reports until it is stopped."""
    pid.with_suffix(".tmp").write_text(str(os.getpid()))
    pid.with_suffix(".tmp").rename(pid)
    while True:
        time.sleep(0.01)
        report({})


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_they_run_at_the_same_time_and_report_by_their_numbers(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    train_side_by_side(
        {3: partial(_meet, tmp_path, "a", "b"), 5: partial(_meet, tmp_path, "b", "a")}, seen.append
    )
    for number in (3.0, 5.0):
        steps = [figures["timesteps"] for figures in seen if figures["member"] == number]
        assert steps == [1.0, 2.0]
    assert len(seen) == 4


def test_none_is_nothing_to_do() -> None:
    train_side_by_side({})


@pytest.mark.parametrize(
    ("end", "reason"), [(_fail, "ValueError: out of luck"), (_die, "exit code -9")]
)
def test_one_that_fails_stops_the_others_and_is_named(
    tmp_path: Path, end: partial[None], reason: str
) -> None:
    pid = tmp_path / "pid"

    def report(figures: dict[str, float]) -> None:
        assert figures["member"] == 0.0

    with pytest.raises(RlbatchError, match=f"member 1 failed: .*{reason}"):
        train_side_by_side({0: partial(_go_on, pid), 1: partial(_after, pid, end)}, report)
    assert not _is_alive(int(pid.read_text()))


def _after(path: Path, end: partial[None], report: Report) -> None:
    _wait_for(path)
    end(report)


def test_they_end_when_the_process_that_asked_for_them_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from rlbatch.envs.processes import keep_tensorflow_out; keep_tensorflow_out()\n"
        "from rlbatch.agents.side_by_side import train_side_by_side\n"
        "from tests.agents.test_side_by_side import _go_on\n"
        "if __name__ == '__main__':\n"
        "    train_side_by_side({0: partial(_go_on, Path(sys.argv[1]))})\n"
    )
    script, pid = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(program)
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pid)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        _wait_for(pid)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + PATIENCE
    while _is_alive(int(pid.read_text())):
        assert time.monotonic() < deadline, "it trains on for nobody"
        time.sleep(0.05)
