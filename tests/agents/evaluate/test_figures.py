from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.curve_store import read_lines
from rlbatch.agents.evaluate.demo import draw_demo, run_demo, verdict
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


def test_the_demonstration_reports_what_the_runs_gave(cheap: str, tmp_path: Path) -> None:
    demo = run_demo(tmp_path, task=cheap, policy="fixed", seeds=2, jobs=1)

    assert [size.batch_size for size in demo.sizes] == [1, 2, 4, 8, 16, 32]
    # Staying at the default is the default: same cost, same samples.
    assert demo.summary.to_default.value == pytest.approx(1.0)
    assert demo.default.seconds == pytest.approx(np.mean([row["cost"] for row in demo.rows]))
    assert demo.default.samples == np.mean([row["samples"] for row in demo.rows])
    assert demo.default.reached == 2
    assert min(s.seconds for s in demo.sizes if s.seconds) >= 0.99 * np.mean(
        [row["reference_cost"] for row in demo.rows]
    )
    assert demo.sweep_seconds > np.mean([row["reference_cost"] for row in demo.rows])
    assert "as much as the default size" in verdict(demo)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    pixels: Any = imread(draw_demo(demo, tmp_path, task=cheap))
    assert np.ptp(pixels) > 0.5
