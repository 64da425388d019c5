"""What two processes refuse together in Accelerate, Lightning and Transformers: none waits.

The plain loop on ranks: `rank_programs.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("transformers")

from tests.contract.refusing_ranks import Job
from tests.rlbatch.integrations.torchrun import launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SAME = "Expected the same {} on every rank, got {}"
ELSEWHERE = "Another rank could not load its state"
# Of the first process and of the second, whose state it is.
SAID = {
    "data": (SAME.format("samples_of_an_epoch", "63 to 64"),) * 2,
    "loader": (SAME.format("batch_size", "4 to 8"),) * 2,
    "micro": (SAME.format("micro_batch_size", "2 to 3"),) * 2,
    "state": (ELSEWHERE, "In the state of the run, expected the fields"),
    "missing": (ELSEWHERE, "is damaged (UnpicklingError)"),
    "converted": ("parameters were torch.float64 on cpu when the controller was made",) * 2,
}
OF_ONE_FILE = (SAME.format("state_to_go_on_from", "0 to 1"),) * 2


def test_two_processes_refuse_together(tmp_path: Path) -> None:
    frameworks = ("accelerate", "lightning", "transformers")
    jobs = [Job(f"{framework} {kind}") for framework in frameworks for kind in SAID]
    seen = launch(jobs, tmp_path)
    for job in jobs:
        expected = SAID[job.kind]
        if job.name == "lightning missing":
            expected = OF_ONE_FILE
        for words, rank in zip(expected, seen[job.name], strict=True):
            assert words in rank["said"], job.name
