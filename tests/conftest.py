"""Settings shared by all tests: one thread, reproducible examples, no GPU test without a GPU."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, so it goes first
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# No deadline: a loaded machine is no defect. Derandomised: a failure in one place fails everywhere.
hypothesis.settings.register_profile("rlbatch", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("rlbatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same global seed, whatever ran before it in the same process."""
    torch.manual_seed(0)
