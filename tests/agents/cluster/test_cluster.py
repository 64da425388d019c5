"""Benchmarks and searches on a real Ray cluster of two nodes, with a worker and a node killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlbatch.cli import main

pytest.importorskip("ray", reason="needs Ray: pip install 'rlbatch[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
PATIENCE_SECONDS = 120.0


class TwoNodes:
    """A cluster in a process of its own, which ends with this one."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "two_nodes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )
        self.address = self._line("ADDRESS").split()[1]

    def remove_second(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("remove\n")
        self._process.stdin.flush()
        self._line("REMOVED")

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _line(self, begin: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(begin):
                return line
        raise AssertionError("the cluster ended")


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    yield nodes
    nodes.close()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return Path(shutil.copy(HERE / "watched_task.py", tmp_path))


def rlbatch(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "rlbatch", *map(str, arguments)]


def bench(task: Path, out: Path, *more: str, seeds: int = 2) -> list[str]:
    command = rlbatch("bench", "--task", f"{task}:make", "--out", out, "--seeds", str(seeds))
    return [*command, "--policy", "fixed", "fixed:16", "goodput", "--start", "1", "2", *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=1200
    )


def here(command: list[str]) -> int:
    """Run a command in this process alone, and return its exit code."""
    return main([*command[len(rlbatch()) :], "--jobs", "1"])


def begun(task: Path) -> list[list[str]]:
    """Return the process of every run that was begun, and its parent: one a node, of Ray's."""
    path = task.with_name("begun.txt")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sweeps_are_the_same_and_errors_reach_the_caller(
    nodes: TwoNodes, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ("--cluster", nodes.address)

    def sweep(name: str, *more: str) -> list[str]:
        return rlbatch(
            *("sweep", "--task", f"{task}:make", "--profile", "cpu", "--seeds", "2"),
            *("--first", "8", "--json", "--out", tmp_path / name, *more),
        )

    assert here(sweep("here")) == 0
    done = run(sweep("cluster", *cluster))
    assert done.returncode == 0, done.stderr
    found = [json.loads(capsys.readouterr().out), json.loads(done.stdout)]
    for one in found:
        for name in [name for name in one if "seconds" in name]:
            del one[name]
    assert found[0] == found[1]
    assert len({node for _, node in begun(task)}) >= 2  # the second one did run elsewhere

    command = bench(task, tmp_path / "failing", *cluster)
    failed = run([part.replace(":make", ":failing") for part in command])
    assert failed.returncode == 1
    assert "OverflowError: no model for you" in failed.stderr


def test_a_killed_worker_and_a_killed_node_change_no_result(
    nodes: TwoNodes, task: Path, tmp_path: Path
) -> None:
    assert here(bench(task, tmp_path / "here")) == 0
    alone = len(begun(task))
    task.with_name("begun.txt").unlink()
    task.with_name("slow").touch()
    out = tmp_path / "cluster"
    results = out / "results.jsonl"

    def finished() -> int:
        return results.read_bytes().count(b"\n") if results.exists() else 0

    command = bench(task, out, "--cluster", nodes.address)
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        # With the first results the fixed runs are known: from now on each run begins once.
        wait_until(lambda: finished() >= 3, process)
        count = len(begun(task))
        wait_until(lambda: len(begun(task)) > count, process)
        os.kill(int(begun(task)[-1][0]), signal.SIGKILL)
        after = finished() + 2
        wait_until(lambda: finished() >= after, process)
        used = {node for _, node in begun(task)}
        nodes.remove_second()
        begun_before = len(begun(task))
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert results.read_bytes() == (tmp_path / "here" / "results.jsonl").read_bytes()
    assert len(used) == 2
    assert len({node for _, node in begun(task)[begun_before + 1 :]}) == 1
    # What was lost, and no more, was begun again: the worker's run, and the node's if it had one.
    assert alone + 1 <= len(begun(task)) <= alone + 2

    total = len(begun(task))
    assert run(command).returncode == 0  # all is finished
    assert len(begun(task)) == total
