"""What a training on one's own tasks is made of, each part by itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.agents.own_tasks.baselines import best_shifts
from rlbatch.agents.own_tasks.budget import FIRST_ROUNDS, MOST_ROUNDS, Budget, divide, load_division
from rlbatch.agents.own_tasks.evaluation import scores
from rlbatch.agents.own_tasks.fixed_costs import (
    CurveResult,
    CurveWork,
    TaskCosts,
    mean_costs,
    run_curves,
)
from rlbatch.agents.own_tasks.plan import Plan, absolute, load_plan, save_plan
from rlbatch.agents.own_tasks.sampler import OwnTaskSampler
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.agents.workers import Workers
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

CHEAP = f"{Path(__file__).parents[1] / 'evaluate' / 'cheap_task.py'}:make"
PLAN = Plan(tasks=(CHEAP,), starts=(0.5, 1.0), seeds=2)


def result(**costs: float) -> CurveResult:
    return CurveResult({int(size[1:]): cost for size, cost in costs.items()}, None, 1)


def test_costs_are_geometric_means_in_which_a_failure_counts_four_times_the_best() -> None:
    both = mean_costs(PLAN, CHEAP, [result(s8=2.0, s16=1.0), result(s8=8.0, s16=1.0, s32=2.0)])
    assert both.costs[16] == pytest.approx(1.0)
    assert both.costs[8] == pytest.approx(math.sqrt(2.0 * 4.0))  # 8 is more than the cap
    assert both.costs[32] == pytest.approx(math.sqrt(4.0 * 2.0))
    assert both.costs[1] == math.inf
    assert (both.best_size, both.reference) == (16, pytest.approx(1.0))
    assert best_shifts([both])[0] == 1


def test_a_task_without_anything_to_decide_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no fixed batch size"):
        mean_costs(PLAN, CHEAP, [result(), result(s8=1.0)])
    with pytest.raises(ConfigurationError, match="nothing to decide"):
        mean_costs(PLAN, CHEAP, [result(s8=1e-9), result(s8=1e-9)])


def test_curves_cost_what_plain_runs_do_and_are_made_once(tmp_path: Path) -> None:
    task = resolve_task(CHEAP)
    work = CurveWork(PLAN, CHEAP, 1, tmp_path, task_identity(CHEAP, task))
    made = run_curves(work)
    plain = fixed_run_curve(
        task, 4, seed=10_001, coupling=Coupling.SQRT, max_steps=20_000, target_loss=task.target
    )
    expected = PLAN.clock.run_cost(int(plain.steps[-1]), 4, 50, task.batch_size)
    assert made.costs[4] == pytest.approx(float(expected))
    assert made.curves > 2
    again = run_curves(work)
    assert (again.curves, again.costs) == (0, made.costs)

    # Where the folder is out of reach, what is known is sent along and what was made comes back.
    content = work.path.read_bytes()
    known = content[: content.index(b"\n") + 1]
    elsewhere = work._replace(folder=tmp_path / "unknown", known=known)
    sent = run_curves(elsewhere)
    assert (sent.curves, sent.costs) == (made.curves - 1, made.costs)
    assert known + sent.added == content
    assert not elsewhere.path.exists()
    with pytest.raises(ConfigurationError, match="has another task"):
        run_curves(work._replace(identity="another"))


def test_draws_are_of_the_plan() -> None:
    costs = TaskCosts(CHEAP, {4: 2.0, 8: 1.0, 16: 3.0}, None)
    sampler, rng = OwnTaskSampler(PLAN, [costs]), np.random.default_rng(0)
    drawn = [sampler(rng) for _ in range(40)]
    assert {setting.start_batch_size for setting in drawn} == {4, 8}
    assert min(setting.seed for setting in drawn) >= 1_000_000
    assert all(setting.reference_cost == 1.0 for setting in drawn)


def test_validation_goes_on_where_it_was(tmp_path: Path) -> None:
    costs = TaskCosts(CHEAP, {4: 0.02, 8: 0.02, 16: 0.02}, None)
    path, candidate = tmp_path / "validation.jsonl", Candidate("stay", "fixed", "rule")
    counts: list[int] = []

    def on_progress(done: int, total: int) -> None:
        counts.append(total)

    with Workers(1) as workers:
        Validation(PLAN, [costs], path).run([candidate], 1, workers, on_progress)
    lines = path.read_text().splitlines()
    assert len(lines) == 2 == counts[0]
    path.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote
    again = Validation(PLAN, [costs], path)
    assert again.rounds_of("stay") == 0
    with Workers(1) as workers:
        again.run([candidate], 2, workers, on_progress)
    assert counts[-1] == 3
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row["start"], row["seed"]) for row in rows} == {(0.5, 0), (1.0, 1), (0.5, 2), (1.0, 3)}
    ratios = [json.loads(line)["ratio"] for line in path.read_text().splitlines()]
    assert again.rounds_of("stay") == 2
    assert again.score("stay", 2) == pytest.approx(float(np.exp(np.mean(np.log(ratios)))))


def test_time_is_counted_over_stops(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 10.0)
    (tmp_path / "time.json").write_text('{"seconds": 540.0}')
    assert budget.left > Budget(tmp_path, 10.0).left
    assert 50.0 < Budget(tmp_path, 10.0).left <= 60.0
    assert Budget(tmp_path, 1.0).left == 0.0


def test_seeds_are_fewer_where_time_is_short(tmp_path: Path) -> None:
    rich = divide(10_000.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    poor = divide(200.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    none = divide(0.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    assert (rich.validation_rounds, rich.test_seeds) == (MOST_ROUNDS, 4)
    assert poor.reserved <= 0.6 * 200.0
    assert (none.validation_rounds, none.test_seeds) == (FIRST_ROUNDS, 2)
    poor.save(tmp_path)
    assert load_division(tmp_path) == poor


def test_a_plan_holds_in_any_folder_and_notices_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "my tasks"
    folder.mkdir()
    source = Path(CHEAP.rpartition(":")[0]).read_text()
    (folder / "a task.py").write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = f"{folder / 'a task.py'}:make"
    assert absolute("a task.py:make") == absolute("~/my tasks/a task.py:make") == whole
    assert absolute("digits-mlp") == "digits-mlp"
    plan = Plan(tasks=(whole,))
    save_plan(plan, tmp_path)
    monkeypatch.chdir("/")
    assert load_plan(tmp_path) == load_plan(tmp_path, [whole]) == plan
    with pytest.raises(ConfigurationError, match="holds a training on"):
        load_plan(tmp_path, ["digits-mlp"])
    (folder / "a task.py").write_text(source + "\n")
    with pytest.raises(ConfigurationError, match="changed since"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "at least one"),
        ({"starts": (0.0,)}, "positive multiples"),
        ({"seeds": 0}, "at least 1"),
        ({"coupling": "adascale"}, "adascale"),
        ({"profile": "wall"}, "rlbatch profile"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Plan(**{"tasks": ("digits-mlp",), **wrong})


def test_scores_are_by_start_and_over_all() -> None:
    def row(policy: str, start: int, seed: int, ratio: float) -> dict:
        return {
            **{"policy": policy, "task": CHEAP, "start_batch_size": start, "seed": seed},
            **{"ratio": ratio, "reached": ratio < 4},
        }

    rows = [row("a", 4, 0, 1.0), row("a", 4, 1, 4.0), row("a", 8, 0, 2.0), row("a", 8, 1, 2.0)]
    (score,) = scores(PLAN, [*rows, row("b", 4, 0, 9.0)], [Candidate("first", "a", "rule")], "a")
    assert score.by_start == (pytest.approx(2.0), pytest.approx(2.0))
    assert (score.all.value, score.reached) == (pytest.approx(2.0), 0.75)
    assert score.kept
