from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.agents.evaluate.simulated import POOL_SEED, simulate, simulated_rows
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.registry import resolve_policy
from rlbatch.testing.scripted import ScriptedPolicy

COUNT = 60


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    return make_pool(COUNT, POOL_SEED)


def calm(pool: TaskPool) -> TaskPool:
    """The same tasks, whose runs follow their mean, as references do."""
    tasks = replace(
        pool.tasks,
        directions=np.full(len(pool), np.inf),
        start_batch_size=pool.tasks.start_batch_size.copy(),
    )
    return replace(pool, tasks=tasks)


def test_staying_costs_what_the_pool_says(pool: TaskPool) -> None:
    rows = simulated_rows(calm(pool), "fixed", "simulated:60")

    reached = [row for row in rows if row["reached"]]
    assert len(reached) > COUNT / 3
    for row in reached:
        assert row["batch_size_min"] == row["batch_size_max"] == row["start_batch_size"]
        assert row["cost"] == pytest.approx(row["start_cost"], rel=1e-6)
    for row in rows:
        assert row["reached"] == (row["ratio"] < 4.0)
        assert row["reference_cost"] == pool.fixed_cost[row["seed"]].min()


def test_the_best_fixed_size_has_the_ratio_one(pool: TaskPool) -> None:
    quiet = calm(pool)
    quiet.tasks.start_batch_size[:] = 2 ** np.argmin(pool.fixed_cost, axis=1)
    found = simulate(quiet, Bounded(resolve_policy("fixed")))

    assert np.median(found["ratio"]) == pytest.approx(1.0)
    assert np.mean(np.isclose(found["ratio"], 1.0)) > 0.95  # the guard may undo a chunk of a few


def test_runs_that_vary_cost_about_as_much_as_their_mean() -> None:
    pool = make_pool(400, POOL_SEED)
    best = 2.0 ** np.argmin(pool.fixed_cost, axis=1)
    at_best = replace(pool, tasks=replace(pool.tasks, start_batch_size=best))
    ratio = simulate(at_best, Bounded(resolve_policy("fixed")))["ratio"]

    assert np.exp(np.log(ratio).mean()) == pytest.approx(1.0, abs=0.06)
    assert np.std(np.log(ratio)) > 0.02


def test_decisions_are_applied_and_seen(pool: TaskPool) -> None:
    found = simulate(pool, Bounded(ScriptedPolicy((1.0,))))

    start, largest = pool.tasks.start_batch_size, pool.tasks.max_batch_size
    decided = found["decisions"] >= 1
    np.testing.assert_array_equal(
        found["largest"][decided], np.minimum(2 * start, largest)[decided]
    )
    released = found["smallest"] != start  # by the guard, to the task's own size
    assert released.mean() < 0.05
    base = pool.tasks.base_batch_size
    np.testing.assert_array_equal(found["smallest"][released], base[released])


def test_the_bench_runs_simulated_tasks_repeatably(tmp_path: Path) -> None:
    settings = BenchSettings(("simulated:25",), ("fixed", "goodput"), seeds=1)
    rows = run_bench(settings, tmp_path / "first")
    run_bench(settings, tmp_path / "second")

    assert len(rows) == 50
    assert {row["task"] for row in rows} == {"simulated:25"}
    first, second = ((tmp_path / n / "results.jsonl").read_bytes() for n in ("first", "second"))
    assert first == second


def test_policies_that_are_missing_are_added(tmp_path: Path) -> None:
    settings = BenchSettings(("simulated:25",), ("fixed", "goodput"), seeds=1)
    whole = run_bench(settings, tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"goodput"' not in line) + lines[-1][:30])

    assert run_bench(settings, tmp_path) == whole
