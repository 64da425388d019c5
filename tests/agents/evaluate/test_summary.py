from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rlbatch.agents.evaluate.summary import (
    compare,
    geometric_mean,
    summarize,
    summarize_by,
    to_json,
)


def row(policy: str, seed: int, ratio: float, **changes: Any) -> dict[str, Any]:
    return {
        "task": "t",
        "policy": policy,
        "lr_coupling": "sqrt",
        "profile": "cpu",
        "objective": "target",
        "start_batch_size": 8,
        "seed": seed,
        "reached": ratio < 4.0,
        "ratio": ratio,
        "reference_cost": 2.0,
        "default_cost": 4.0,
        "start_cost": 1.0,
        **changes,
    }


def test_a_summary_is_what_one_computes_by_hand() -> None:
    rows = [row("a", seed, ratio) for seed, ratio in enumerate((0.5, 1.0, 2.0, 4.0))]

    (summary,) = summarize(rows)

    assert summary.ratio.value == pytest.approx(math.sqrt(2))
    assert summary.reach_rate == 0.75
    assert (summary.median, summary.worst) == (1.5, 4.0)
    assert (summary.p10, summary.p90) == pytest.approx((0.65, 3.4))
    assert summary.to_default.value == pytest.approx(math.sqrt(2) / 2)  # default: ratio 2
    assert summary.to_start.value == pytest.approx(math.sqrt(2) * 2)  # start: ratio 0.5
    assert summary.fixed_default.value == pytest.approx(2.0)
    assert summary.fixed_start.value == pytest.approx(0.5)
    assert summary.runs == 4


def test_the_best_policy_comes_first() -> None:
    rows = [row("worse", 0, 2.0), row("better", 0, 1.0)]

    assert [summary.policy for summary in summarize(rows)] == ["better", "worse"]


def test_tasks_are_summarized_apart() -> None:
    rows = [row("a", 0, 1.0), row("a", 0, 3.0, task="u")]

    found = summarize_by(rows, "task")

    assert {task: one[0].ratio.value for task, one in found.items()} == pytest.approx(
        {"t": 1.0, "u": 3.0}
    )


def test_the_interval_covers_the_mean_of_a_known_population_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        mean = geometric_mean(rng.normal(0.3, 0.5, size=40), list(range(40)))
        assert mean.low is not None
        assert mean.high is not None
        covered += mean.low <= math.exp(0.3) <= mean.high
    assert 0.88 <= covered / 200 <= 0.99


def test_runs_of_one_cluster_count_as_one_draw() -> None:
    logs = np.random.default_rng(0).normal(size=30)

    once = geometric_mean(logs, list(range(30)))
    tenfold = geometric_mean(np.repeat(logs, 10), [i // 10 for i in range(300)])

    assert tenfold.value == pytest.approx(once.value)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_a_single_cluster_has_no_interval() -> None:
    mean = geometric_mean(np.array([0.0, 1.0]), ["one", "one"])

    assert (mean.low, mean.high) == (None, None)
    assert str(mean) == "1.649"


def test_pairs_are_compared_cell_by_cell_where_both_have_run() -> None:
    rows = [row("a", 0, 1.0), row("a", 1, 3.0), row("a", 2, 1.0)]
    rows += [row("b", 0, 2.0), row("b", 1, 3.0), row("b", 5, 0.1)]

    (pair,) = compare(rows)

    assert (pair.first, pair.second, pair.cells) == ("a", "b", 2)
    assert pair.ratio.value == pytest.approx(math.sqrt(0.5))
    assert (pair.wins, pair.ties) == (0.5, 0.5)


def test_pairing_removes_what_both_share() -> None:
    hard = np.random.default_rng(0).uniform(0.5, 3.0, size=20)  # tasks differ more than policies
    rows = [row("a", i, float(x)) for i, x in enumerate(hard)]
    rows += [row("b", i, float(1.1 * x)) for i, x in enumerate(hard)]

    (pair,) = compare(rows)

    assert pair.ratio.low == pytest.approx(1 / 1.1)
    assert pair.ratio.high == pytest.approx(1 / 1.1)
    a, b = summarize(rows)
    assert a.ratio.high is not None
    assert b.ratio.low is not None
    assert a.ratio.high > b.ratio.low  # unpaired, the intervals overlap


def test_everything_is_strict_json() -> None:
    content = to_json([row("a", 0, 1.0), row("b", 0, 4.0)])

    assert json.loads(json.dumps(content, allow_nan=False)) == content
