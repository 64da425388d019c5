"""The log keeps its contract; one that forgets to cut is caught."""

from pathlib import Path

import pytest

from rlbatch.log.episode_log import EpisodeLog
from rlbatch.testing.episode_log_contract import EpisodeLogContract


class TestEpisodeLog(EpisodeLogContract):
    def open_log(self, folder: Path, *, resume: bool = False) -> EpisodeLog:
        return EpisodeLog(folder, {"policy": "fixed"}, resume=resume, tensorboard=False)


class _Buffered(EpisodeLog):
    def write(self, record: object) -> None:
        """Keep it for later, that is, lose it when killed."""


def test_a_log_that_writes_late_is_caught(tmp_path: Path) -> None:
    contract = EpisodeLogContract()
    contract.open_log = lambda folder, *, resume=False: _Buffered(
        folder, {}, resume=resume, tensorboard=False
    )
    with pytest.raises(AssertionError):
        contract.test_a_line_is_there_before_the_log_is_closed(tmp_path)
