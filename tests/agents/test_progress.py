"""The figures of a training's episodes."""

from __future__ import annotations

import math

import pytest

from rlbatch.agents.progress import EpisodeFigures


def test_ratios_are_means_by_family_and_failures_count_four() -> None:
    figures = EpisodeFigures()
    assert figures.values() == {}
    figures.note([{"episode": {"r": -1.0}, "task": "digits-mlp", "ratio": 1.0, "reached": True}])
    figures.note(
        [
            {"episode": {"r": -2.0}, "task": "digits-mlp-sgd", "ratio": 0.5, "reached": False},
            {"episode": {"r": -3.0}, "task": "random:17", "ratio": 2.0, "reached": True},
            {"episode": {"r": -4.0}, "task": 5, "ratio": 9.0, "reached": True},
            {},  # goes on
        ]
    )
    values = figures.values()
    assert values.pop("rollout/return") == pytest.approx(-2.5)
    assert values == pytest.approx(
        {"ratio/digits-mlp": math.sqrt(4.0), "ratio/random": 2.0, "ratio/simulated": 4.0}
    )
