"""The contract of an episode log, as a pytest class to subclass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode


class EpisodeLogContract:
    """Subclass it, name the subclass `Test...` and override `open_log`.

    The log writes the format of `rlbatch.log.episode_log`, which `read_episode` reads.
    """

    def open_log(self, folder: Path, *, resume: bool = False) -> Any:
        """Return a log with `write(record)`, `position`, `truncate_to(position)` and `close()`."""
        raise NotImplementedError

    def make_record(self, index: int) -> DecisionRecord:
        """Return a decision to write."""
        return DecisionRecord(
            index=index,
            event="decision",
            step=4 * (index + 1),
            effective_step=4 * (index + 1),
            epoch=0.1 * index,
            samples_seen=128 * (index + 1),
            cost=0.5 * (index + 1),
            batch_size_before=32,
            batch_size=64,
            requested_log2_change=2.0,
            applied_log2_change=1.0,
            learning_rate_factor=1.0,
            signals={"train_loss": float("nan")},
            reasons=("limited to 64",),
        )

    def write(self, folder: Path, count: int) -> list[DecisionRecord]:
        """Write a log of some decisions and return them."""
        records = [self.make_record(i) for i in range(count)]
        log = self.open_log(folder)
        for record in records:
            log.write(record)
        log.close()
        return records

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        """Every field, in order."""
        records = self.write(tmp_path / "log", 3)
        episode = read_episode(tmp_path / "log")
        assert [r.to_json() for r in episode.records] == [r.to_json() for r in records]
        assert not episode.torn

    def test_a_line_is_there_before_the_log_is_closed(self, tmp_path: Path) -> None:
        """A killed run leaves what it decided."""
        log = self.open_log(tmp_path / "log")
        log.write(self.make_record(0))
        assert len(read_episode(tmp_path / "log").records) == 1
        log.close()

    def test_a_torn_last_line_is_tolerated(self, tmp_path: Path) -> None:
        """And said."""
        self.write(tmp_path / "log", 3)
        path = tmp_path / "log" / "decisions.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        episode = read_episode(tmp_path / "log")
        assert episode.torn
        assert len(episode.records) == 2

    def test_an_existing_log_is_not_overwritten(self, tmp_path: Path) -> None:
        """Unless it is resumed."""
        self.write(tmp_path / "log", 2)
        with pytest.raises(EpisodeLogError):
            self.open_log(tmp_path / "log")
        assert len(read_episode(tmp_path / "log").records) == 2

    def test_a_resumed_log_has_neither_gap_nor_duplicate(self, tmp_path: Path) -> None:
        """Back to the checkpoint's position, and on from there."""
        self.write(tmp_path / "log", 4)
        log = self.open_log(tmp_path / "log", resume=True)
        log.truncate_to(2)
        assert log.position == 2
        log.write(self.make_record(2))
        log.close()
        assert [r.index for r in read_episode(tmp_path / "log").records] == [0, 1, 2]
