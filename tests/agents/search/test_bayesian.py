from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from werkzeug.test import Client

from rlbatch.agents.search.bayesian import RATE, SIZE, STUDY, Bayesian, optimize
from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.summary import best, front, points
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.errors import ConfigurationError
from tests.agents.search.made_up import Table, outcome

TARGET = Goal("target", 0.0, 1.0)
PLAN = Bayesian(smallest=8, largest=1024, start=32, trials=16, startup=4)


def valley(spec: TrialSpec, stop: Stop) -> Outcome:
    """Cost least at a batch size of 181 and 1.5 octaves above the coupled rate."""
    cost = 10.0 * 2.0 ** (
        0.3 * (math.log2(spec.batch_size) - 7.5) ** 2 + 0.5 * (spec.rate - 1.5) ** 2
    )
    if stop.max_cost is not None and cost > stop.max_cost:
        return outcome(stop.max_cost, complete=False, stopped=True)
    return outcome(cost)


def load(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")


@pytest.mark.slow
def test_it_finds_the_valley_from_the_users_size() -> None:
    table = Table(valley)

    trials = optimize(PLAN, TARGET, table, None)

    assert table.asked[0] == TrialSpec(32, 0.0, 0)
    chosen = best(points(trials, TARGET))
    assert chosen is not None
    assert 90 <= chosen.batch_size <= 363
    assert chosen.cost.value < 1.3 * 10.0
    assert len(trials) == len(table.asked) <= 16


def test_runs_that_were_given_up_are_told_as_such(tmp_path: Path) -> None:
    study_file = tmp_path / "study.sqlite"
    plan = Bayesian(8, 1024, 32, trials=6, seeds=2, startup=6)

    trials = optimize(plan, TARGET, Table(valley), study_file)

    told = load(study_file).trials
    assert [trial.state for trial in told] == [TrialState.COMPLETE] * 6
    stopped = [trial for trial in told if trial.user_attrs["stopped"]]
    assert stopped
    for trial in stopped:  # the second seed of a hopeless pair is not run
        assert trial.user_attrs["runs"] == 1
    best_score = min(o.score(TARGET) for o in trials.values())
    for trial in told:
        if trial.user_attrs["complete"] == 2:
            assert trial.value is not None
            assert 2.0**trial.value >= best_score * (1 - 1e-9)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_killed_search_goes_on_and_repeats_no_trial(tmp_path: Path, cut: int) -> None:
    study_file, plan = tmp_path / "study.sqlite", Bayesian(8, 1024, 32, trials=6, startup=6)

    class Killed(Table):
        def __call__(self, work: object) -> dict[TrialSpec, Outcome]:
            if len(self.asked) == cut:
                raise KeyboardInterrupt
            return super().__call__(work)  # type: ignore[arg-type]

    first = Killed(valley)
    with pytest.raises(KeyboardInterrupt):
        optimize(plan, TARGET, first, study_file)
    running = [trial for trial in load(study_file).trials if trial.state == TrialState.RUNNING]
    second = Table(valley)
    second.known = dict(first.known)
    trials = optimize(plan, TARGET, second, study_file)

    assert not set(first.asked) & set(second.asked)
    assert set(trials) == set(first.asked) | set(second.asked)
    states = [trial.state for trial in load(study_file).trials]
    assert states.count(TrialState.COMPLETE) == 6
    assert states.count(TrialState.RUNNING) == 0
    assert len(running) == 1  # what it was at is asked for again
    again = round(2.0 ** running[0].params[SIZE]), running[0].params[RATE]
    assert again in {(spec.batch_size, spec.rate) for spec in trials}


@pytest.mark.slow
def test_the_memory_limit_is_a_constraint_that_the_sampler_learns(tmp_path: Path) -> None:
    # Larger is better, and what is larger than 100 does not fit: a pass takes a byte a sample.
    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        fits = spec.batch_size <= 100
        cost = 1000.0 / spec.batch_size
        memory = spec.batch_size if fits else 0
        return outcome(cost if fits else 0.0, complete=fits, fits=fits, memory=memory)

    plan = Bayesian(8, 1024, 32, trials=9, startup=4, rate_range=0.0, memory_limit=100)
    trials = optimize(plan, TARGET, Table(function), tmp_path / "study.sqlite")

    chosen = best(points(trials, TARGET))
    assert chosen is not None
    assert chosen.batch_size == 91  # 2^6.5, the largest half octave below 100
    study = load(tmp_path / "study.sqlite")
    late = [trial for trial in study.trials[4:] if trial.state == TrialState.COMPLETE]
    assert sum(trial.params[SIZE] > math.log2(100) for trial in late) <= 1
    assert study.best_trial.user_attrs["batch_size"] == 91


@pytest.mark.slow
def test_two_objectives_give_a_front(tmp_path: Path) -> None:
    def function(spec: TrialSpec, stop: Stop) -> Outcome:
        octaves = math.log2(spec.batch_size)
        return outcome(2.0 ** (10 - octaves), 0.1 * 2.0 ** (0.2 * octaves + abs(spec.rate)))

    goal = Goal("epochs", 1.0, 0.2)
    plan = Bayesian(8, 1024, 32, trials=14, startup=4, objectives=("cost", "quality"))
    trials = optimize(plan, goal, Table(function), tmp_path / "study.sqlite")

    study = load(tmp_path / "study.sqlite")
    ours = {point.batch_size for point in front(points(trials, goal))}
    assert {trial.user_attrs["batch_size"] for trial in study.best_trials} == ours
    assert len(ours) > 2


def test_optuna_dashboard_opens_the_study(tmp_path: Path) -> None:
    """Its page, and the numbers that it draws, are those of the file."""
    dashboard: Any = pytest.importorskip("optuna_dashboard")
    path = tmp_path / "study.sqlite"
    plan = Bayesian(8, 1024, 32, trials=4, startup=4, objectives=("cost", "quality"))
    optimize(plan, Goal("epochs", 1.0, 0.2), Table(valley), path)

    client = Client(dashboard.wsgi(f"sqlite:///{path}"))
    page = client.get("/dashboard", buffered=True)  # and closed
    assert (page.status_code, page.mimetype) == (200, "text/html")
    summaries: Any = client.get("/api/studies").json
    (summary,) = summaries["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == (STUDY, ["minimize", "minimize"])
    shown: Any = client.get(f"/api/studies/{summary['study_id']}?after=0").json
    expected = load(path).trials
    assert len(expected) == 4
    for trial, known in zip(shown["trials"], expected, strict=True):
        assert trial["state"] == "Complete"
        assert trial["values"] == known.values
        sizes = [a["value"] for a in trial["user_attrs"] if a["key"] == "batch_size"]
        assert sizes == [str(known.user_attrs["batch_size"])]


@pytest.mark.parametrize(
    "changes",
    [{"smallest": 64}, {"start": 4096}, {"trials": 0}, {"objectives": ("cost",)}, {"seeds": 0}],
)
def test_an_empty_space_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Bayesian(**{"smallest": 8, "largest": 1024, "start": 32, **changes})


def test_two_objectives_need_both_to_be_free() -> None:
    plan = Bayesian(8, 1024, 32, objectives=("quality", "cost"))

    with pytest.raises(ConfigurationError, match="epochs=N"):
        optimize(plan, TARGET, Table(valley), None)
