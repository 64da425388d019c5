"""Processes that do some work, and import no more than it takes."""

import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rlbatch.envs.processes import start_process


def test_a_process_does_what_it_is_given_and_answers() -> None:
    double = 2

    def work(pipe: Connection) -> None:  # a closure: no plain pickle takes it
        while (number := pipe.recv()) is not None:
            pipe.send((double * number, os.getpid()))

    pipe, process = start_process(work, daemon=True)
    pipe.send(21)
    assert pipe.recv() == (42, process.pid)
    pipe.send(None)
    process.join()
    assert process.exitcode == 0
    with pytest.raises(EOFError):
        pipe.recv()


def test_a_process_with_stable_baselines_has_no_tensorflow() -> None:
    def work(pipe: Connection) -> None:
        import stable_baselines3.common.logger as module

        pipe.send((module.__name__ in sys.modules, "tensorflow" in sys.modules))

    pipe, process = start_process(work, daemon=True)
    assert pipe.recv() == (True, False)
    process.join()


@pytest.mark.slow
def test_tensorboard_needs_no_tensorflow_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import sys; from rlbatch.envs.processes import keep_tensorflow_out as keep;"
        "_ = len(sys.argv) > 1 and keep();"
        "import stable_baselines3.common.logger as l; print(l.SummaryWriter is not None)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    kept, let_in = (
        subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, env=environment
        )
        for more in (["keep"], [])
    )
    assert let_in.stderr == "imported\n"  # the probe sees it
    assert (kept.returncode, kept.stdout) == (0, "True\n")
