"""Benchmarks of runs of so many epochs: the frontier is made, kept, and held against."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbatch.agents.evaluate import frontier_runs
from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.epochs_summary import summarize_epochs
from rlbatch.agents.evaluate.frontier_runs import Plan, plans
from rlbatch.agents.evaluate.planned_runs import fixed_setting
from rlbatch.agents.evaluate.rows import Row
from rlbatch.agents.evaluate.settings import BenchSettings, Group
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.task import Task, planned_length
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

EPOCHS = 6  # of 50 samples: a schedule of 38 steps at 8 a step


def settings(task: str, **changes: Any) -> BenchSettings:
    arguments: dict[str, Any] = {
        "tasks": (task,),
        "policies": ("fixed", "ramp"),
        "profiles": ("cpu", "accelerator-512:untold"),
        "seeds": 2,
        "objective": f"epochs={EPOCHS}",
    }
    return BenchSettings(**{**arguments, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    out = tmp_path_factory.mktemp("epochs")
    task = f"{Path(__file__).with_name('cheap_task.py')}:scheduled"
    return out, run_bench(settings(task), out)


def test_rows_hold_the_run_beside_the_users(finished: tuple[Path, list[Row]]) -> None:
    _, rows = finished

    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["samples"] >= EPOCHS * 50
        assert row["reached"]
        assert row["ratio"] == pytest.approx(row["cost"] / row["reference_cost"])
        assert row["time_to_default"] == pytest.approx(row["cost"] / row["default_cost"])
    stays = [row for row in rows if row["policy"] == "fixed"]
    assert [row["time_to_default"] for row in stays] == pytest.approx([1.0] * 4, rel=1e-3)
    assert [row["loss_to_default"] for row in stays] == pytest.approx([1.0] * 4)
    assert {row["changes"] for row in stays} == {0}
    assert {row["changes"] for row in rows if row["policy"] == "ramp"} == {2}


def test_no_policy_goes_below_the_users_size_but_those_made_of_smaller_ones(
    cheap: str, tmp_path: Path
) -> None:
    names = ("thirds", "geometric:factor=0.5,every_epochs=1")
    rows = run_bench(settings(cheap, policies=names, seeds=1, profiles=("cpu",)), tmp_path)
    assert {row["policy"]: row["batch_size_min"] for row in rows} == {names[0]: 4, names[1]: 8}


def test_the_ratio_is_what_single_runs_say(
    finished: tuple[Path, list[Row]], scheduled_task: Task
) -> None:
    """The user's run is held against means over four seeds, computed here from fresh runs."""
    _, rows = finished
    task, planned = scheduled_task, 38

    def end(size: int, steps: int, seed: int) -> tuple[float, int]:
        rows = fixed_run_curve(
            task,
            size,
            seed=seed,
            coupling=Coupling.SQRT,
            max_samples=steps * 8,
            planned_steps=steps,
        )
        return float(rows.val_loss[-1]), int(rows.steps[-1])

    clock = resolve_clock("cpu")
    lines: dict[int, list[tuple[float, float]]] = {}
    setting = fixed_setting(settings_of(rows), Group(rows[0]["task"], "sqrt", 0), task)
    for plan in plans(setting, planned):
        found = [end(plan.batch_size, plan.planned_steps, seed) for seed in range(4)]
        loss = float(np.exp(np.mean([math.log(one[0]) for one in found])))
        cost = float(clock.run_cost(found[0][1], plan.batch_size, 50, 8))
        lines.setdefault(plan.batch_size, []).append((cost, loss))
    row = next(row for row in rows if row["policy"] == "fixed" and row["profile"] == "cpu")
    wanted = math.inf
    for line in lines.values():
        line.sort()
        losses = np.minimum.accumulate([loss for _, loss in line])
        costs = np.log([cost for cost, _ in line])
        if losses[-1] <= row["final_val_loss"] <= losses[0]:
            at = np.interp(-row["final_val_loss"], -losses, costs)
            wanted = min(wanted, math.exp(float(at)))
    assert row["reference_cost"] <= wanted * (1 + 1e-6)
    assert row["reference_cost"] == pytest.approx(wanted, rel=0.35)  # extrapolation may find less


def settings_of(rows: list[Row]) -> BenchSettings:
    return settings(rows[0]["task"])


def test_fixed_runs_are_made_once(
    finished: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows = finished
    made: list[int] = []
    run = frontier_runs.fixed_run_curve

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(frontier_runs, "fixed_run_curve", counted)
    again = run_bench(settings(rows[0]["task"], policies=("fixed", "ramp", "thirds")), out)
    assert not made
    assert [row for row in again if row["policy"] != "thirds"] == rows


def test_a_killed_frontier_goes_on(
    cheap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = frontier_runs.fixed_run_curve
    made: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(frontier_runs, "fixed_run_curve", interrupted)
    reports: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run_bench(settings(cheap), tmp_path, on_fixed=lambda *at: reports.append(at))
    assert reports[-1][0] == 7
    files = list((tmp_path / "references").glob("*.jsonl"))
    assert sum(len(CurveStore(path).items()) for path in files) == 7

    monkeypatch.setattr(frontier_runs, "fixed_run_curve", run)
    rows = run_bench(settings(cheap), tmp_path, on_fixed=lambda *at: reports.append(at))
    assert reports[-1][0] == reports[-1][1]
    assert len(rows) == 8
    assert rows == run_bench(settings(cheap), tmp_path.with_name("other"))


def test_grid_of_fixed_runs(cheap_task: Task, cheap: str) -> None:
    setting = fixed_setting(settings(cheap), Group(cheap, "sqrt", 0), cheap_task)
    found = plans(setting, 75)

    assert found[0] == Plan(8, 75)
    assert len(set(found)) == len(found)
    assert {plan.batch_size for plan in found} == {2, 4, 8, 16, 32}
    for plan in found:
        steps = plan.planned_steps * 8 / plan.batch_size
        assert 16 <= steps <= 150
    assert Plan(2, 38) not in found  # 152 steps
    assert planned_length(12, 50, 8) == 75
    assert planned_length(0.1, 50, 8) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profiles": ("cpu", "wall")}, "computed clock, got wall"),
        ({"tasks": ("simulated:2",)}, "got simulated:2"),
        ({"objective": "epochs=0"}, "positive number of epochs, got 'epochs=0'"),
        ({"objective": "epochs=many"}, "positive number of epochs"),
    ],
)
def test_what_has_no_frontier_is_refused(cheap: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings(cheap, **changes)


def row(policy: str, ratio: float, loss: float | None, changes: int) -> Row:
    return {
        "task": "a",
        "seed": changes,
        "policy": policy,
        "ratio": ratio,
        "time_to_default": ratio / 2,
        "loss_to_default": loss,
        "changes": changes,
        "beyond_frontier": loss is None,
    }


def test_summary_by_hand() -> None:
    rows = [row("a", 1.0, 1.03, 1), row("a", 4.0, None, 7), row("b", 0.5, 1.0, 0)]
    best, other = summarize_epochs(rows)

    assert (best.policy, other.policy) == ("b", "a")
    assert other.ratio.value == pytest.approx(2.0)
    assert other.time.value == pytest.approx(1.0)
    assert other.loss.value == pytest.approx(math.sqrt(1.03 * 2.0))
    assert (other.worse, other.worst_loss, other.changes, other.most_changes) == (1.0, 2.0, 4.0, 7)
    assert (best.worse, best.beyond, other.beyond) == (0.0, 0.0, 0.5)
