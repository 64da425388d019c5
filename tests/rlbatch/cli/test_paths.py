"""Paths on the command line: `~` is the home folder wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlbatch.cli import _parse, main
from rlbatch.cli.report import Command
from tests.rlbatch.inspect.made import EXAMPLE


def test_the_home_folder_is_meant_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["~/runs", "here/~/runs", "~nobody-of-this-name/runs", "--out=~/page.html"]

    command = _parse(Command, [*arguments, "--figures", "~"], "rlbatch report")

    assert command.folders == (
        tmp_path / "runs",
        Path("here/~/runs"),
        Path("~nobody-of-this-name/runs"),
    )
    assert command.out == tmp_path / "page.html"
    assert command.figures == tmp_path


def test_no_folder_of_that_name_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    assert main(["report", str(EXAMPLE), "--out=~/page.html"]) == 0

    assert [path.name for path in tmp_path.iterdir()] == ["home"]
