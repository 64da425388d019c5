"""What a training leaves, for several modules."""

from pathlib import Path

import pytest

from rlbatch.agents.ppo import train
from tests.agents.tiny import TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training")
    train(TINY, out)
    return out
