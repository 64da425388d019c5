"""Figures are drawn of what is known, as PNG and SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from rlbatch.inspect.reading import read_logs
from rlbatch.inspect.report.figures import draw_figures
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_log, make_record


@pytest.mark.slow
def test_each_chart_and_a_sheet_of_all(tmp_path: Path) -> None:
    paths = draw_figures(read_logs([EXAMPLE, LOGS / "live"]), tmp_path / "figures")

    names = {path.stem for path in paths}
    assert {"training_loss", "batch_size", "noise_scale", "cost", "all"} <= names
    assert {path.suffix for path in paths} == {".png", ".svg"}
    for path in paths:
        if path.suffix == ".svg":
            ET.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_strange_numbers_and_names_are_drawn(tmp_path: Path) -> None:
    signals = {"train_loss": math.inf, "val_loss": -1.0}
    records = [make_record(i, cost=math.nan, signals=signals) for i in range(2)]

    paths = draw_figures([make_log(*records, name="_$x^$ \x1b[2J")], tmp_path)

    assert {path.stem for path in paths} == {"batch_size", "learning_rate", "all"}


def test_a_log_without_lines_has_no_figures(tmp_path: Path) -> None:
    assert draw_figures([make_log()], tmp_path) == []


def test_logarithmic_axes_have_plain_numbers(tmp_path: Path) -> None:
    losses = (4.5, 2.0, 1.3)
    records = [
        make_record(i, batch_size=16 * 2**i, signals={"train_loss": loss})
        for i, loss in enumerate(losses)
    ]

    draw_figures([make_log(*records)], tmp_path)

    for name, labels in {"batch_size": (16, 32, 64), "training_loss": (1.5, 2, 3)}.items():
        content = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert all(f"<!-- {label} -->" in content for label in labels)
        assert "mathdefault" not in content  # no powers
