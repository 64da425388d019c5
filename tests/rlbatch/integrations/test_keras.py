"""Runs the tests of the Keras integration in a process for each backend."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = {"tensorflow": "tensorflow", "torch": "keras"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs keras"),
]


NAMES = ("contract", "fit", "means", "programs", "noise", "jobs")


@pytest.mark.parametrize("backend", MODULES)
def test_fit_under_a_controller(backend: str) -> None:
    """All in one process: each start of TensorFlow takes many seconds."""
    if importlib.util.find_spec(MODULES[backend]) is None:
        pytest.skip(f"needs {MODULES[backend]}")
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "RLBATCH_TEST_KERAS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(Path(__file__).with_name(f"test_keras_{name}.py")) for name in NAMES]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
