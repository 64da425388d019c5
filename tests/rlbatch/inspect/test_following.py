"""A log is followed while it grows, is cut, and ends."""

from __future__ import annotations

from pathlib import Path

from rlbatch.inspect.following import follow
from rlbatch.log.decision_record import DecisionRecord
from tests.rlbatch.inspect.made import make_record

LINES = [f"{make_record(index).to_json()}\n" for index in range(4)]
END = f"{make_record(4, event='end').to_json()}\n"


def followed(tmp_path: Path, contents: list[str | None]) -> list[list[int]]:
    """Return the indices after each look; the file holds the next content at each."""
    path, left = tmp_path / "decisions.jsonl", list(contents)

    def put() -> None:
        content = left.pop(0)
        if content is not None:
            path.write_text(content)

    put()
    seen = follow(tmp_path, sleep=lambda seconds: put())
    return [[record.index for record in records] for records in seen]


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    contents: list[str | None] = [
        None,  # the run has not begun to write
        LINES[0],
        LINES[0] + LINES[1][:20],  # half a line is not shown
        LINES[0] + LINES[1],
        LINES[0] + LINES[1],  # nothing new
        "".join(LINES) + END,
    ]

    assert followed(tmp_path, contents) == [[0], [0, 1], [0, 1, 2, 3, 4]]


def test_a_resumed_run_shows_what_its_log_holds_now(tmp_path: Path) -> None:
    contents: list[str | None] = ["".join(LINES), LINES[0], LINES[0] + END]

    shown = followed(tmp_path, contents)

    assert shown == [[0, 1, 2, 3], [0], [0, 4]]


def test_it_yields_records(tmp_path: Path) -> None:
    (tmp_path / "decisions.jsonl").write_text(LINES[0] + END)

    (records,) = follow(tmp_path, sleep=lambda seconds: None)

    assert all(isinstance(record, DecisionRecord) for record in records)
