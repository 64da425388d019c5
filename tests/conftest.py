"""Settings shared by all tests: one thread, reproducible examples, no GPU test without a GPU.

The files that take longest go first, so that workers side by side end at about the same time. `make
test` gives each of them whole files: what a file's tests share is made once.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, so it goes first
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

from rlbatch.envs.processes import keep_tensorflow_out

torch.set_num_threads(1)
if "RLBATCH_TEST_KERAS" not in os.environ:
    keep_tensorflow_out()  # by TensorBoard it would be imported in every process of the tests

# No deadline: a loaded machine is no defect. Derandomised: a failure in one place fails everywhere.
hypothesis.settings.register_profile("rlbatch", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("rlbatch")


# Of those with few slow tests, which take a minute or more.
LONGEST = ("test_keras.py", "test_transformers_ranks.py", "test_cluster.py", "test_end_to_end.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: _place(item.path, slow))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _place(path: Path, slow: Counter[Path]) -> tuple[int, int]:
    """Return what files are sorted by: the longest, then by slow tests, the rest as they came."""
    place = LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)
    return place, -slow[path]


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> None:
    """Leave what is there already out of searches by the garbage collector.

    A controller looks through all objects for schedulers and averages of weights. With every test
    and framework loaded they are most of a million, where a run of its own has a fraction of that.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same global seed, whatever ran before it in the same process."""
    torch.manual_seed(0)
