"""Runs the tests of the Keras integration, and its example, in a process for each backend."""

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


def run(backend: str, *arguments: str) -> str:
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
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize(
    # The contract's double precision outlives it in Keras.
    "names",
    [
        ("test_keras_contract.py", "test_keras_fit.py"),
        ("test_keras_means.py", "test_keras_programs.py"),
        ("test_keras_noise.py", "test_keras_jobs.py"),
    ],
    ids=["fit", "means", "noise"],
)
def test_fit_under_a_controller(backend: str, names: tuple[str, ...]) -> None:
    tests = [str(Path(__file__).with_name(name)) for name in names]
    report = run(backend, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests)
    assert " passed" in report


@pytest.mark.parametrize("backend", MODULES)
def test_the_example(backend: str) -> None:
    shown = run(backend, "examples/keras_run.py", "--policy", "goodput", "--epochs", "3")
    assert f"Keras on {backend}" in shown
    assert "samples seen: 3 x 1,437" in shown


def test_another_backend_is_refused() -> None:
    """On JAX the step keeps its state elsewhere: that is said before anything is trained."""
    program = (
        "from types import SimpleNamespace\n"
        "import keras\n"
        "from rlbatch.integrations.keras import BatchSizeControl\n"
        "keras.backend.backend = lambda: 'jax'\n"
        "try:\n"
        "    BatchSizeControl(8, 'fixed')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert "KERAS_BACKEND=tensorflow" in run("torch", "-c", program)
