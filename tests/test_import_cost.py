"""What `import rlbatch` loads: a training job should not pay for what it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "gymnasium",
    "keras",
    "lightning",
    "matplotlib",
    "rich",
    "sklearn",
    "stable_baselines3",
    "tensorboard",
    "tensorflow",
    "transformers",
    "tyro",
}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter loads for a statement."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line]
    return {name.split(".")[0] for name in names}


def test_the_probe_sees_what_is_loaded() -> None:
    assert {"json", "csv"} <= loaded_by("import json; from csv import reader")
    assert "csv" not in loaded_by("import json")


def test_import_rlbatch_loads_nothing_heavy_and_not_even_torch() -> None:
    loaded = loaded_by("import rlbatch")

    assert "rlbatch" in loaded
    assert not loaded & (HEAVY | {"torch", "numpy"})


@pytest.mark.parametrize(
    "statement",
    [
        "from rlbatch import BatchController, Cadence, ControllerConfig, Decision, Limits",
        "from rlbatch import Policy, Signals, load_policy, resolve_policy",
        "import rlbatch.log.episode_log",
    ],
)
def test_the_public_names_load_torch_and_numpy_at_most(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY
