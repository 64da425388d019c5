"""The examples run, as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# A thread of torch's gloo backend that frees a tensor while its process ends aborts it, whether the
# group was destroyed or not (pytorch/pytorch pull request 179291): rare, and none of ours.
GLOO_ABORTED = "terminate called without an active exception"


def run(*arguments: str, **environment: str) -> str:
    """Return what a program prints; it has to end well and to complain about nothing."""
    result = attempt(*arguments, **environment)
    if result.returncode and GLOO_ABORTED in result.stderr:
        result = attempt(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def attempt(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("example", ["ddp.py", "fsdp.py"])
def test_several_ranks(example: str) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run(*launch, str(EXAMPLES / example))
    # One line, of rank 0: each of three epochs visits each of 2,000 samples once.
    (line,) = printed.splitlines()
    assert "6000 samples" in line
    loss = float(line.partition("loss ")[2].partition(",")[0])
    assert loss < 0.2  # of 0.7 at first


@pytest.mark.slow
def test_accelerate() -> None:
    printed = run(str(EXAMPLES / "accelerate_run.py"))
    assert "over 16000 samples" in printed  # and a variance of the targets of about 5
    assert float(printed.partition("validation loss ")[2].partition(",")[0]) < 3.0


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("processes", [1, 2])
def test_transformers(processes: int) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    example = str(EXAMPLES / "transformers_run.py")
    printed = run(*(launch if processes > 1 else ()), example, HF_HUB_OFFLINE="1")
    assert "over 3000 samples" in printed
    # Of 4.9 at first; two processes begin with batches of 16 and make fewer steps.
    assert float(printed.partition("validation loss ")[2].partition(",")[0]) < 3.5


@pytest.mark.slow
def test_lightning() -> None:
    printed = run("-W", "ignore", str(EXAMPLES / "lightning_run.py"))
    assert "1,437 + 0 samples" in printed  # whole epochs, until the target is met
    assert float(printed.partition("validation loss ")[2]) <= 0.4
