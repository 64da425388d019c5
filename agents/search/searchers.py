"""Searches as entries of a benchmark, charged for every trial they make.

`sweep`, `bayesian` and `bandit` stand beside policies; with `:runs=10` the job recurs ten times.
The job's first run has the seed of its cell. A sweep's and a Bayesian search's trials are that run
already: the best of them has reached the target. Nine further runs at the size and rate that was
found have seeds of their own. A bandit runs the job itself each time. Cost is the mean of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlbatch.agents.evaluate.run import RunResult, largest_batch_size
from rlbatch.agents.search.bandit import Bandit, PastRun, choose
from rlbatch.agents.search.bayesian import Bayesian, optimize
from rlbatch.agents.search.conditions import Conditions, TrialRunner
from rlbatch.agents.search.doubling import Doubling, next_trials
from rlbatch.agents.search.pool import Evaluate
from rlbatch.agents.search.searcher_names import Searcher
from rlbatch.agents.search.summary import best, points
from rlbatch.agents.search.trial_store import TrialStore
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.envs.task import Task, smallest_batch_size
from rlbatch.errors import ConfigurationError, RlbatchError

_SEED_STEP = 1_000  # between the seeds of recurrences, to keep clear of a benchmark's
_BAYESIAN_TRIALS = 12


def run_searcher(
    searcher: Searcher, conditions: Conditions, seed: int, start: int, folder: Path
) -> RunResult:
    """Return what a run of the job costs on average, all trials charged.

    Args:
        searcher: Which search, and how often the job recurs.
        conditions: Of its runs, to a target.
        seed: Of the first run.
        start: The user's batch size.
        folder: Keeps finished trials.

    Raises:
        ConfigurationError: The goal is no target.
    """
    if conditions.goal.kind != "target":
        raise ConfigurationError(
            "Searches are compared by what they cost to a target. Leave sweep, bayesian and bandit "
            f"out, or take --objective target; got {conditions.goal.text}."
        )
    runner = TrialRunner(conditions)
    name = f"{searcher.name}-{seed}-{start}.sqlite"
    clock = conditions.profile.replace("/", "_").replace(":", "_")
    folder.mkdir(parents=True, exist_ok=True)
    identity = {**conditions.identity(), "search": searcher.name, "seed": seed, "start": start}
    store = TrialStore(folder / f"{clock}-{conditions.coupling}-{name}", identity)
    job = _Job(runner, store, seed)
    made = (
        _recur(searcher, job, start) if searcher.name == "bandit" else _search(searcher, job, start)
    )
    return _result(made, searcher.runs, start)


@dataclass
class _Job:
    """Runs trials of one job; those that are in the store are not run again."""

    runner: TrialRunner
    store: TrialStore
    seed: int

    def evaluate(self, work: list[tuple[TrialSpec, Stop]]) -> dict[TrialSpec, Outcome]:
        """Run trials whose seeds count from the job's own."""
        known = self.store.all()
        found: dict[TrialSpec, Outcome] = {}
        for spec, stop in work:
            own = TrialSpec(spec.batch_size, spec.rate, self.seed + spec.seed)
            outcome = known.get(own)
            if outcome is None:
                outcome = self.runner.run(own, stop)
                self.store.put(own, outcome)
            found[spec] = outcome
        return found


def _search(searcher: Searcher, job: _Job, start: int) -> list[tuple[TrialSpec, Outcome]]:
    """Search once, and run the job at what was found as often as it recurs after that."""
    task, goal = job.runner.task, job.runner.conditions.goal
    evaluate: Evaluate = lambda work: job.evaluate(list(work))  # noqa: E731 - of the wanted type
    trials: Mapping[TrialSpec, Outcome]
    if searcher.name == "sweep":
        plan = Doubling(min(_first(task), start), largest_batch_size(task), seeds=1)
        doubled: dict[TrialSpec, Outcome] = {}
        while work := next_trials(plan, goal, doubled):
            doubled |= evaluate(work)
        trials = doubled
    else:
        smallest = min(_first(task), start)
        plan = Bayesian(smallest, largest_batch_size(task), start, trials=_BAYESIAN_TRIALS)
        trials = optimize(plan, goal, evaluate, None)
    chosen = best(points(trials, goal))
    size, rate = (start, 0.0) if chosen is None else chosen.key
    again = [TrialSpec(size, rate, _SEED_STEP * k) for k in range(1, searcher.runs)]
    further = evaluate([(spec, Stop()) for spec in again])
    return [*trials.items(), *further.items()]


def _recur(searcher: Searcher, job: _Job, start: int) -> list[tuple[TrialSpec, Outcome]]:
    """Run the job as often as it recurs, each time at the size that the bandit chooses."""
    task = job.runner.task
    sizes = {start, *Doubling(min(_first(task), start), largest_batch_size(task)).sizes()}
    plan, runs = Bandit(tuple(sorted(sizes)), start), list[PastRun]()
    made: list[tuple[TrialSpec, Outcome]] = []
    for count in range(searcher.runs):
        try:
            choice = choose(plan, runs)
        except RlbatchError:  # no size converges: the user's own goes on
            choice = None
        size = start if choice is None else choice.batch_size
        limit = None if choice is None or math.isinf(choice.max_cost) else choice.max_cost
        spec = TrialSpec(size, 0.0, _SEED_STEP * count)
        outcome = job.evaluate([(spec, Stop(max_cost=limit))])[spec]
        made.append((spec, outcome))
        pruning = choice is not None and choice.pruning
        runs.append(PastRun(size, pruning, False, outcome.cost, outcome.complete))
        if not outcome.complete:
            # The job is to be done all the same: it is run again as the user runs it today. With
            # another seed, since a run at the very same size may be the one that was given up.
            spec = TrialSpec(start, 0.0, _SEED_STEP * count + _SEED_STEP // 2)
            made.append((spec, job.evaluate([(spec, Stop())])[spec]))
    return made


def _first(task: Task) -> int:
    return max(min(32, task.batch_size), smallest_batch_size(task))


def _result(made: list[tuple[TrialSpec, Outcome]], runs: int, start: int) -> RunResult:
    """Return the mean over the recurrences; reached if each of them had a run that arrived."""
    complete = [(spec, outcome) for spec, outcome in made if outcome.complete]
    sizes = [spec.batch_size for spec, _ in made]
    last = complete[-1][1] if complete else made[-1][1]
    return RunResult(
        start_batch_size=start,
        reached=len(complete) >= runs,
        diverged=not complete,
        cost=sum(outcome.cost for _, outcome in made) / runs,
        steps=round(sum(outcome.steps for _, outcome in made) / runs),
        samples=round(sum(outcome.samples for _, outcome in made) / runs),
        final_val_loss=last.loss,
        batch_size_min=min(sizes),
        batch_size_max=max(sizes),
        decisions=0,
        wall_seconds=sum(outcome.seconds for _, outcome in made) / runs,
        decision_seconds=0.0,
        validations=(),
        trajectory=((0.0, sizes[-1]),),
    )
