"""What trackers are told, and that a failing one does not end a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.log.episode_log import read_episode
from rlbatch.tracking import RecordValues, Texts, Tracker, Values, flat
from tests.rlbatch.inspect.made import EXAMPLE


class Kept:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.runs: list[Mapping[str, Any]] = []
        self.lines: list[tuple[int, Values, Texts]] = []

    def begin(self, run: Mapping[str, Any]) -> None:
        self.runs.append(run)

    def log(self, samples: int, values: Values, texts: Texts) -> None:
        self.lines.append((samples, values, texts))


class Broken(Kept):
    """Takes one line."""

    def log(self, samples: int, values: Values, texts: Texts) -> None:
        if self.lines:
            raise OSError("no network")
        super().log(samples, values, texts)


def train(*trackers: Tracker, log_dir: Path | None = None) -> int:
    """Train for two epochs and return the steps."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=8, policy="goodput", trackers=trackers, log_dir=log_dir
    )
    loader = controller.loader(DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8))
    for _ in range(2):
        for inputs, targets in loader:
            controller.backward(nn.functional.mse_loss(model(inputs), targets))
            controller.step()
    controller.close()
    return int(controller.components["steps"])


def test_a_tracker_gets_what_the_log_gets(tmp_path: Path) -> None:
    kept = Kept()

    train(kept, log_dir=tmp_path)

    episode = read_episode(tmp_path)
    (run,) = kept.runs
    assert run["policy"] == episode.run["policy"] == "goodput"
    assert "trackers" not in run["config"]
    assert run["context"]["base_batch_size"] == 8.0
    values = RecordValues(episode.run)
    assert repr(kept.lines) == repr(
        [(record.samples_seen, *values.of(record)) for record in episode.records]
    )
    assert kept.lines[-1][2]["decision/event"] == "end"


def test_it_needs_no_log() -> None:
    kept = Kept()

    steps = train(kept)

    assert len(kept.lines) > 5
    assert kept.lines[-1][1]["progress/step"] == steps


def test_one_that_fails_is_dropped_with_a_warning_and_the_training_goes_on() -> None:
    broken, kept = Broken(), Kept()

    with pytest.warns(RuntimeWarning, match="Broken gets no more of this run: OSError: no network"):
        steps = train(broken, kept)

    assert len(broken.lines) == 1
    assert kept.lines[-1][1]["progress/step"] == steps


def test_values_are_finite_and_described() -> None:
    episode = read_episode(EXAMPLE)
    values = RecordValues(episode.run)

    for record in episode.records:
        found, _ = values.of(record)
        assert all(math.isfinite(value) for value in found.values())


def test_a_runs_head_becomes_one_level_of_names() -> None:
    run = {"a": {"b": 1, "c": {"d": True}}, "e": [1.5, "x"], "f": "text", "g": None}

    assert flat(run) == {"a/b": 1.0, "a/c/d": "True", "e": "[1.5, 'x']", "f": "text"}
