from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.curve_store import read_lines
from rlbatch.agents.evaluate.figures import draw_figures, figure
from rlbatch.agents.evaluate.settings import BenchSettings


def test_pictures_are_drawn(cheap: str, tmp_path: Path) -> None:
    settings = BenchSettings((cheap, "simulated:20"), ("fixed", "goodput"), seeds=2)
    rows = run_bench(settings, tmp_path)

    paths = draw_figures(rows, read_lines(tmp_path / "trajectories.jsonl"), tmp_path)

    assert [path.name for path in paths] == ["ratios.png", "reached.png", "batch_sizes.png"]
    for path in paths:
        pixels: Any = imread(path)
        assert min(pixels.shape[:2]) > 200
        assert np.ptp(pixels) > 0.5


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw_figures([], [], tmp_path) == []


def test_drawing_leaves_no_global_figures_behind() -> None:
    import matplotlib.pyplot as plt

    figure(1, 1, 2, 2)

    assert plt.get_fignums() == []


def test_a_task_whose_path_is_long_leaves_the_figures_room(cheap: str, tmp_path: Path) -> None:
    """Matplotlib warns where labels take all of it, and warnings are errors here."""
    settings = BenchSettings((cheap,), ("fixed", "goodput"), seeds=1)
    rows = run_bench(settings, tmp_path)
    renamed = [{**row, "task": f"{'a-folder/' * 30}{row['task']}"} for row in rows]

    assert draw_figures(renamed, [], tmp_path)
