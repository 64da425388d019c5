"""The demonstration says what its runs gave, losses too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from rlbatch.agents.evaluate.demo import Cost, Demo, Start, run_demo, verdicts
from rlbatch.agents.evaluate.demo_picture import draw_demo


def start_of(ours: Cost, staying: Cost, rule: Cost, best: Cost) -> Start:
    return Start(8, "the task's own size", staying, rule, ours, best, (16,), (8, 16), "log")


def demo_of(*starts: Start) -> Demo:
    return Demo("cheap", "default", "cpu", 2, starts, [])


def test_the_demonstration_reports_what_the_runs_gave(cheap: str, tmp_path: Path) -> None:
    demo = run_demo(
        tmp_path, task=cheap, policy="fixed", profile="cpu", starts=(0.5, 1.0), seeds=2, jobs=1
    )

    small, own = demo.starts
    assert (small.batch_size, small.name) == (4, "a half")
    assert (own.batch_size, own.sizes) == (8, (8,))
    # Who never changes the size stays at the start: two ways to the same cost.
    assert own.controller.mean == pytest.approx(own.staying.mean)
    ours = [row for row in demo.rows if row["policy"] == "fixed"]
    assert own.best.mean == np.mean([r["reference_cost"] for r in ours if r["seed"] in (0, 1)][:2])
    assert own.rule.mean == np.mean(
        [r["cost"] for r in demo.rows if (r["policy"], r["start_batch_size"]) == ("goodput", 8)]
    )
    assert own.controller.mean >= 0.99 * own.best.mean
    assert Path(own.log).parent == tmp_path / "runs"
    assert (Path(own.log) / "decisions.jsonl").is_file()
    pixels: Any = imread(draw_demo(demo, tmp_path))
    assert np.ptp(pixels) > 0.5


def test_gains_and_losses_are_told() -> None:
    start = start_of(Cost(1.0, 2, 2), Cost(4.0, 1, 2), Cost(2.0, 2, 2), Cost(0.8, 2, 2))

    told, lost = verdicts(demo_of(start))

    assert told == (
        "From 8 (the task's own size) the controller took at least 75% less time than staying, "
        "50% less time than the goodput rule and 25% more time than the best fixed size."
    )
    assert lost == "It lost to the best fixed size from 8 (the task's own size)."


def test_a_run_that_was_given_up_counts_as_lost_and_not_as_a_figure() -> None:
    given_up = Cost(4.0, 1, 2)
    start = start_of(given_up, Cost(5.0, 2, 2), Cost(4.0, 0, 2), Cost(1.0, 2, 2))

    told, lost = verdicts(demo_of(start))

    assert str(given_up) == "> 4.00"
    assert "at least 300% more time than the best fixed size" in told
    assert "an unknown multiple of the time of staying" in told
    assert "to staying and the best fixed size from" in lost
