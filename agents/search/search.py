"""A search from its settings to its result, kept in a folder and gone on with there.

A folder holds

    search.json    the settings; other settings are refused
    trials.sqlite  the finished trials
    study.sqlite   Optuna's study, for the Bayesian method
    bandit.sqlite  the bandit's runs
    result.json    what came out
    search.png     quality and cost against the batch size, and the front
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlbatch.agents.evaluate.clocks import WALL
from rlbatch.agents.executor import open_executor
from rlbatch.agents.search.bandit import Bandit, least_cost, survivors
from rlbatch.agents.search.bandit_store import BanditStore, StartedRun
from rlbatch.agents.search.bayesian import Bayesian, optimize
from rlbatch.agents.search.conditions import Conditions
from rlbatch.agents.search.doubling import Doubling, next_trials
from rlbatch.agents.search.pool import Evaluate, OnTrial, evaluator
from rlbatch.agents.search.trial_store import TrialStore
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.errors import ConfigurationError

Method = Literal["doubling", "bayesian", "bandit"]
TRIALS_FILE, STUDY_FILE, BANDIT_FILE = "trials.sqlite", "study.sqlite", "bandit.sqlite"

WORST_SCORE = 1e9
"""Of a run that was lost before any other had a score."""

Trials = dict[TrialSpec, Outcome]
Plan = Doubling | Bayesian | Bandit


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        conditions: Of its trials.
        plan: The method with its settings.
        runs: Recurrences of a bandit's job in all.
    """

    conditions: Conditions
    plan: Plan
    runs: int = 0

    @property
    def method(self) -> Method:
        """Its name."""
        names: dict[type, Method] = {
            Doubling: "doubling",
            Bayesian: "bayesian",
            Bandit: "bandit",
        }
        return names[type(self.plan)]

    @property
    def most_trials(self) -> int:
        """How many trials it has, if none of its ends comes early."""
        plan = self.plan
        if isinstance(plan, Bandit):
            return self.runs
        if isinstance(plan, Bayesian):
            return plan.trials * plan.seeds
        return len(plan.sizes()) * plan.seeds * (3 if plan.tune_rate else 1)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same to go on with it, as JSON values."""
        plan = asdict(self.plan)
        plan.pop("trials", None)  # how long to go on may change
        return {"method": self.method, **self.conditions.identity(), "plan": plan}


@dataclass(frozen=True)
class Found:
    """What a search has run.

    Attributes:
        trials: Its trials.
        repeated: Of these, those that were there before.
        in_race: Sizes that a bandit still considers; empty for the other methods.
    """

    trials: Trials
    repeated: int
    in_race: tuple[int, ...] = field(default=())


def run_search(
    search: Search,
    out: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    on_trial: OnTrial | None = None,
) -> Found:
    """Run a search, or what is missing of it.

    Args:
        search: What to do.
        out: Its folder, which exists.
        jobs: Processes. On the wall clock they disturb each other.
        cluster: Address of a Ray cluster, as for `open_executor`.
        on_trial: Called after each trial that was run.

    Raises:
        ConfigurationError: The folder holds another search, or the clock is one machine's own.
    """
    if cluster is not None and search.conditions.profile == WALL:
        raise ConfigurationError(
            "Seconds of several machines do not compare: --cluster needs a computed clock. Give "
            "another --profile, or leave --cluster out."
        )
    store = TrialStore(out / TRIALS_FILE, search.identity())
    before = len(store.all())
    with (
        open_executor(jobs, cluster) as executor,
        evaluator(search.conditions, store, executor, on_trial) as evaluate,
    ):
        jobs = executor.width
        plan, goal = search.plan, search.conditions.goal
        if isinstance(plan, Doubling):
            return Found(double(plan, search, evaluate), before)
        if isinstance(plan, Bayesian):
            width = max(1, jobs // plan.seeds)
            return Found(optimize(plan, goal, evaluate, out / STUDY_FILE, width), before)
        bandit = BanditStore(out / BANDIT_FILE, plan)
        take_up(bandit, store, search)
        recur(bandit, search, evaluate, jobs)
        return Found(store.all(), before, survivors(plan, bandit.runs()))


def double(plan: Doubling, search: Search, evaluate: Evaluate) -> Trials:
    """Run a search by doubling to its end, and return its trials."""
    trials: Trials = {}
    while work := next_trials(plan, search.conditions.goal, trials):
        trials |= evaluate(work)
    return trials


def recur(bandit: BanditStore, search: Search, evaluate: Evaluate, jobs: int = 1) -> None:
    """Run a bandit's job until it has recurred as often as it should, here or elsewhere."""
    while True:
        started: list[StartedRun] = []
        while len(started) < jobs and (run := bandit.start(search.runs)) is not None:
            started.append(run)
        if not started:
            return
        work = {spec_of(run): run for run in started}
        outcomes = evaluate([(spec, Stop(max_cost=_limit(run))) for spec, run in work.items()])
        for spec, run in work.items():
            finish(bandit, run, outcomes[spec], search)


def take_up(bandit: BanditStore, store: TrialStore, search: Search) -> None:
    """Tell the bandit of runs that ended just before their process was killed."""
    trials = store.all()
    for run in bandit.lost():
        if (outcome := trials.get(spec_of(run))) is not None:
            finish(bandit, run, outcome, search)


def spec_of(run: StartedRun) -> TrialSpec:
    """Return the trial of a recurrence: each has a seed of its own, as jobs that recur do."""
    return TrialSpec(run.choice.batch_size, 0.0, run.id)


def finish(bandit: BanditStore, run: StartedRun, outcome: Outcome, search: Search) -> None:
    """Tell the bandit what a trial came to: its score, which for a target is its cost.

    One that did not end as it should and has no score counts as given up at its limit.
    """
    goal = search.conditions.goal
    score = outcome.cost if goal.kind == "target" else outcome.score(goal)
    if not math.isfinite(score):
        known = least_cost(bandit.runs())
        score = bandit.plan.beta * known if math.isfinite(known) else WORST_SCORE
    bandit.finish(run, max(score, 1e-300), outcome.complete)


def _limit(run: StartedRun) -> float | None:
    return run.choice.max_cost if run.choice.max_cost < float("inf") else None
