"""The demonstration's command: what it says before its first result, and in how many processes."""

from __future__ import annotations

import pytest

from rlbatch.cli import _shared
from rlbatch.cli.demo import DEFAULT_TASK, Command


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        (Command(), 1),  # its runs are over before another process has begun
        (Command(task="digits-cnn", profile="wall"), 1),  # two would disturb each other's clock
        (Command(task="digits-cnn", seeds=1), 1),
        (Command(jobs=2), 2),
        (Command(jobs=5, seeds=3), 3),
    ],
)
def test_processes(command: Command, processes: int) -> None:
    assert command._jobs() == processes


def test_what_it_does_is_said() -> None:
    said = Command()._announced()

    assert DEFAULT_TASK in said
    assert "2 seeds" in said
    assert "minute on an idle machine" in said
    assert "idle machine" not in Command(task="digits-cnn")._announced()


def test_without_a_terminal_a_line_says_now_and_then_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_shared, "LINE_EVERY", 0.0)

    with _shared.progress("runs") as update:
        update(3, 1200)
        update(4, None)

    assert capsys.readouterr().err == "runs: 3 of 1,200\nruns: 4\n"
