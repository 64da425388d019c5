"""The summary against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlbatch.inspect.summary import cost_share, summarize
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode, EpisodeLog, read_episode


def make_record(
    index: int, before: int, after: int, cost: float, requested: float, **changes: Any
) -> DecisionRecord:
    values: dict[str, Any] = {
        "index": index,
        "event": "decision",
        "step": 10 * index,
        "effective_step": 10 * index,
        "epoch": float(index),
        "samples_seen": 100 * index,
        "cost": cost,
        "batch_size_before": before,
        "batch_size": after,
        "requested_log2_change": requested,
    }
    return DecisionRecord(**{**values, **changes})


# 32 for 2 of 10 cost units, 64 for 3, 32 for 1, 128 for 4
RECORDS = (
    make_record(0, 32, 64, 2.0, 1.0, signals={"train_loss": 2.0, "val_loss": 3.0}),
    make_record(1, 64, 64, 4.0, 2.0, signals={"train_loss": 1.0, "val_loss": math.nan}),
    make_record(2, 64, 32, 5.0, 0.0, event="rollback", signals={"train_loss": math.inf}),
    make_record(3, 32, 128, 6.0, 2.0),
    make_record(4, 128, 128, 10.0, 0.0, event="end"),
)
EPISODE = Episode({"task": "t", "policy": "p", "seed": 1}, RECORDS)


def test_the_summary_of_a_known_run() -> None:
    assert summarize(EPISODE) == {
        "task": "t",
        "policy": "p",
        "seed": 1,
        "records": 5,
        "events": {"decision": 3, "rollback": 1, "end": 1},
        "torn": False,
        "problems": [],
        "outcome": "ended",
        "steps": 40,
        "samples": 400,
        "epochs": 4.0,
        "cost": 10.0,
        "cost_unit": "cost",
        "batch_size_first": 32,
        "batch_size_final": 128,
        "batch_size_min": 32,
        "batch_size_max": 128,
        "learning_rate_min": None,
        "learning_rate_max": None,
        "changes": 3,
        "held_back": 2,  # 64 stayed instead of 256, and the guard went back to 32
        "interventions": [
            {
                "step": 10,
                "event": "decision",
                "batch_size_before": 64,
                "batch_size": 64,
                "asked": 256.0,
                "reasons": [],
            },
            {
                "step": 20,
                "event": "rollback",
                "batch_size_before": 64,
                "batch_size": 32,
                "asked": 64.0,
                "reasons": [],
            },
        ],
        "cost_share": {"32": 0.3, "64": 0.3, "128": 0.4},
        "target_loss": None,
        "target_samples": None,
        "target_cost": None,
        "train_loss": 1.0,
        "val_loss": 3.0,
        "noise_scale": None,
        "noise_scale_is_bound": False,
        "noise_scale_se": None,
    }


def test_rounding_to_a_whole_batch_size_is_not_holding_back() -> None:
    rounded = make_record(0, 33, 41, 1.0, 0.3)  # 33 * 2^0.3 = 40.63

    assert summarize(Episode({}, (rounded,)))["held_back"] == 0
    assert summarize(Episode({}, (make_record(0, 33, 40, 1.0, 0.3),)))["held_back"] == 1


@pytest.mark.parametrize("costs", [(0.0, 0.0), (1.0, math.nan), (1.0, math.inf)])
def test_no_share_without_a_known_cost(costs: tuple[float, float]) -> None:
    records = [make_record(i, 32, 32, cost, 0.0) for i, cost in enumerate(costs)]

    assert cost_share(records) == {}


def test_an_empty_log_has_a_summary() -> None:
    summary = summarize(Episode({}, ()))

    assert summary["records"] == summary["changes"] == 0
    assert summary["batch_size_final"] is summary["batch_size_max"] is None


def test_the_summary_is_strict_json_whatever_the_log_holds(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {"seed": 1}, tensorboard=False) as log:
        log.write(make_record(0, 32, 64, math.nan, math.inf, epoch=math.inf))

    text = json.dumps(summarize(read_episode(tmp_path)), allow_nan=False)

    assert json.loads(text)["cost"] is None


def test_the_summary_says_when_the_target_was_reached_first() -> None:
    losses = (3.0, math.nan, 0.5, 0.6, 0.4)
    records = [
        make_record(i, 32, 32, 2.0 * i, 0.0, signals={"val_loss": loss})
        for i, loss in enumerate(losses)
    ]
    run = {"context": {"target_loss": 0.5}}

    summary = summarize(Episode(run, tuple(records)))
    assert (summary["target_samples"], summary["target_cost"]) == (200, 4.0)
    assert summarize(Episode(run, tuple(records[:2])))["target_samples"] is None
