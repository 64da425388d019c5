from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.agents.search.conditions import Conditions
from rlbatch.agents.search.goal import parse_goal
from rlbatch.agents.search.searcher_names import Searcher, parse_searcher, with_recurring
from rlbatch.agents.search.searchers import run_searcher
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling


def samples(cheap: str, size: int, seed: int) -> float:
    """Return what a plain run to the target costs in samples; infinite where it never arrives."""
    task = resolve_task(cheap)
    curve = fixed_run_curve(
        task, size, seed=seed, coupling=Coupling.SQRT, max_steps=20_000, target_loss=task.target
    )
    return float(curve.samples[-1]) if curve.reached else float("inf")


def test_names() -> None:
    assert parse_searcher("sweep") == Searcher("sweep", 1)
    assert parse_searcher("bandit:runs=10") == Searcher("bandit", 10)
    assert parse_searcher("fixed:64") is None
    assert with_recurring(("sweep", "default")) == ("sweep", "sweep:runs=10", "default")
    for text in ("sweep:runs=0", "sweep:8", "bandit:"):
        with pytest.raises(ConfigurationError):
            parse_searcher(text)


def test_a_sweep_is_charged_for_all_of_its_runs(cheap: str, tmp_path: Path) -> None:
    conditions = Conditions(cheap, parse_goal("target"), profile="samples")

    once = run_searcher(Searcher("sweep", 1), conditions, 3, 8, tmp_path)
    ten = run_searcher(Searcher("sweep", 10), conditions, 3, 8, tmp_path)

    # By hand: 8, 16, 32, 40, each given up at twice the least, two in a row without improvement.
    least, spent, without, chosen = float("inf"), 0.0, 0, 0
    for size in (8, 16, 32, 40):
        whole = samples(cheap, size, 3)
        cut = min(whole, 2 * least)
        spent += cut
        without = 0 if whole < 0.99 * least else without + 1
        if whole < least:
            least, chosen = whole, size
        if without == 2:
            break
    assert once.cost == pytest.approx(spent, rel=0.2)  # a run is given up after a whole step
    assert once.reached
    further = sum(samples(cheap, chosen, 3 + 1000 * k) for k in range(1, 10))
    assert ten.cost == pytest.approx((once.cost + further) / 10)


def test_the_first_run_of_a_bandit_is_the_users_own(cheap: str, tmp_path: Path) -> None:
    conditions = Conditions(cheap, parse_goal("target"), profile="samples")

    found = run_searcher(Searcher("bandit", 1), conditions, 5, 16, tmp_path)

    assert found.cost == samples(cheap, 16, 5)


def test_ten_recurrences_of_a_bandit_all_arrive(cheap: str, tmp_path: Path) -> None:
    conditions = Conditions(cheap, parse_goal("target"))

    found = run_searcher(Searcher("bandit", 10), conditions, 0, 8, tmp_path)

    assert found.reached
    assert found.batch_size_min < found.batch_size_max


@pytest.mark.slow
def test_in_a_benchmark_searches_stand_beside_policies(cheap: str, tmp_path: Path) -> None:
    settings = BenchSettings(
        tasks=(cheap,), policies=("fixed", *with_recurring(("sweep", "bayesian"))), seeds=1
    )

    rows = {row["policy"]: row for row in run_bench(settings, tmp_path)}

    assert list(rows) == ["bayesian", "bayesian:runs=10", "fixed", "sweep", "sweep:runs=10"]
    for name in ("sweep", "bayesian"):
        one, ten = rows[name], rows[f"{name}:runs=10"]
        assert one["ratio"] == pytest.approx(one["cost"] / one["reference_cost"])
        assert ten["ratio"] < one["ratio"]
    # What was run is kept: nothing is run again once a result is lost.
    results = tmp_path / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(line for line in lines if json.loads(line)["policy"] != "sweep"))
    again = {row["policy"]: row for row in run_bench(settings, tmp_path)}
    assert again == rows


TARGET_ONLY = "compared by what its trials cost to a target, got --objective "


@pytest.mark.parametrize("name", ["sweep", "bayesian", "bandit:runs=10"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": ("simulated:3",)}, "real trainings, and simulated:3 has none"),
        ({"objective": "budget=3"}, TARGET_ONLY + "budget=3"),
        ({"objective": "epochs=2"}, TARGET_ONLY + "epochs=2.*rlbatch sweep --objective epochs=N"),
    ],
)
def test_where_there_is_nothing_to_search_it_is_refused(
    cheap: str, changes: dict[str, object], says: str, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} .*{says}"):
        BenchSettings(**{"tasks": (cheap,), "policies": ("fixed", name), **changes})
