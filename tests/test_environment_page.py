"""The examples of docs/environment.md run, each by itself; what they write are policy files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlbatch.observation import OBSERVATION_NAMES
from rlbatch.policy.file import load_any_policy
from rlbatch.policy.recurrent import RecurrentPolicy
from tests.preloaded import Preloaded

PAGE = (Path(__file__).parents[1] / "docs" / "environment.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# environment: (\w+)\n(.*?)```", PAGE, re.DOTALL))


def test_every_example_is_found() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 8


# TensorFlow, where it is installed, would be imported for TensorBoard. Of rlbatch only what keeps
# it out is imported before an example, which has to import the rest itself.
IMPORTS = """
from rlbatch.envs.processes import keep_tensorflow_out
keep_tensorflow_out()
import gymnasium, stable_baselines3, torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports much when first made
"""


@pytest.fixture(scope="module")
def python() -> Iterator[Preloaded]:
    more = "import sb3_contrib" if importlib.util.find_spec("sb3_contrib") else ""
    with Preloaded(IMPORTS + more, ["-W", "error"]) as python:
        yield python


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, python: Preloaded, tmp_path: Path) -> None:
    if "sb3_contrib" in EXAMPLES[name]:
        pytest.importorskip("sb3_contrib")
    done = python.run(EXAMPLES[name], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = list(tmp_path.glob("*.safetensors"))
    assert bool(files) == ("export_model" in EXAMPLES[name])
    for file in files:
        policy = load_any_policy(file)
        if isinstance(policy, RecurrentPolicy):
            assert policy.memory[0].inputs.shape[1] == len(OBSERVATION_NAMES)
        else:
            assert policy.members[0].sizes("policy")[0] == len(OBSERVATION_NAMES)
