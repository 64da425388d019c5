"""Runs of each integration that are killed at random points end as if nobody had disturbed them.

`RLBATCH_KILLS=50` kills each fifty times. Ranks: `tests/rlbatch/control/test_ranks_resume.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.killed_runs import PROGRAMS

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("RLBATCH_KILLS", "2"))
EXTRAS = {"plain": "torch"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_that_is_killed_is_the_undisturbed_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS.get(name, name))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    more = {"KERAS_BACKEND": "torch", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.killed_runs", name, str(tmp_path), str(KILLS)],
        env={**os.environ, **more, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == KILLS
    assert told["attempted"] > told["steps"]
