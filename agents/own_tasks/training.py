"""The whole of a training on one's own tasks: fixed runs, learning, choosing, testing.

A folder holds

    training.json       what was asked for
    curves/             learning curves of fixed batch sizes
    candidates/         policies that were compared, with checkpoints of the learned ones
    validation.jsonl    a line for each run that compared them
    learning/           what was learned from, and TensorBoard's events
    evaluation/         the test, a benchmark
    policy.safetensors  what is kept so far, policy.md in words

Each part is made once: a training that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rlbatch.agents.executor import Executor, open_executor
from rlbatch.agents.own_tasks.baselines import (
    SHIPPED,
    STAYING,
    baselines,
    best_shifts,
    candidate_file,
)
from rlbatch.agents.own_tasks.budget import (
    CURVES_SHARE,
    FIRST_ROUNDS,
    MOST_SEGMENTS,
    RACING,
    RULES_SHARE,
    SHORTLIST,
    Budget,
    Division,
    Pace,
    divide,
    load_division,
)
from rlbatch.agents.own_tasks.evaluation import evaluate, scores
from rlbatch.agents.own_tasks.fixed_costs import (
    TaskCosts,
    all_costs,
    count_curves,
    expected_curves,
)
from rlbatch.agents.own_tasks.keeping import POLICY_FILE, keep
from rlbatch.agents.own_tasks.learning import Learner, next_segment, recipe_of
from rlbatch.agents.own_tasks.outcome import Display, Outcome
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.race import race
from rlbatch.agents.own_tasks.schedules import ScheduleSearch
from rlbatch.agents.own_tasks.stages import Stages
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.agents.ray_runs import open_servers
from rlbatch.envs.threads import one_thread
from rlbatch.files import lock_folder, unlock

_SIZES = 2  # fixed ones that are compared, at most
_SHORTEST_SEGMENT = 20.0  # seconds
_PATIENCE = 60.0  # seconds in which, however short the time, some fixed size is to arrive


@one_thread()
def train_on_tasks(
    plan: Plan,
    out: Path,
    *,
    minutes: float,
    jobs: int | None,
    display: Display,
    cluster: str | None = None,
) -> Outcome:
    """Train on one's own tasks in about so many minutes, or go on with it.

    Args:
        plan: What is asked for; already kept in the folder.
        out: The folder.
        minutes: Of all beginnings together. What cannot be left out takes longer if it must.
        jobs: Processes; None for one a core. On a cluster the most runs at the same time.
        display: Shows the progress.
        cluster: Address of a Ray cluster for all runs but the test's, as for `open_executor`; task
            files must be on every node.

    Raises:
        ConfigurationError: No fixed size reaches a task's target, or one of them at once; or there
            is no such cluster.
        EpisodeLogError: Another process trains in the folder.
    """
    budget = Budget(out, minutes)
    with ExitStack() as stack:
        stack.callback(unlock, lock_folder(out))
        stack.callback(budget.note)
        executor = stack.enter_context(open_executor(jobs, cluster, apart=True))
        return _Training(plan, out, executor, Stages(budget, display), cluster).run()


class _Training:
    def __init__(
        self, plan: Plan, out: Path, executor: Executor, stages: Stages, cluster: str | None
    ) -> None:
        self._plan, self._out, self._budget = plan, out, stages.budget
        self._executor, self._stages, self._cluster = executor, stages, cluster
        self._curves = out / "curves"
        self._candidates: list[Candidate] = [SHIPPED]
        recipe = recipe_of(plan)
        self._actions = recipe.actions
        self._card = recipe.card((plan.coupling,))
        if not (out / POLICY_FILE).exists():
            keep(plan, SHIPPED, out, validation={})

    def run(self) -> Outcome:
        costs = self._fixed_costs()
        self._validation = Validation(self._plan, costs, self._out / "validation.jsonl")
        self._candidates += baselines(
            self._out / "candidates", self._actions, self._card, best_shifts(costs)[:_SIZES]
        )
        self._compare_baselines()
        division = self._division()
        self._search(costs, self._pace.searching(self._budget.left - division.reserved))
        self._learn(costs, self._budget.left - division.reserved)
        kept, rule = self._choose(division.validation_rounds)
        return self._test(kept, rule, division)

    @property
    def _run_seconds(self) -> float:
        """Of a run, divided by those side by side."""
        return self._validation.run_seconds / self._executor.width

    @property
    def _pace(self) -> Pace:
        runs = FIRST_ROUNDS * len(self._plan.starts) * len(self._plan.tasks)
        return Pace(runs * self._run_seconds)

    def _compare_baselines(self) -> None:
        """Compare what nothing is learned for; of the rules only the best goes on."""
        rules = [one for one in self._candidates if not one.file]
        first = [one for one in self._candidates if one not in rules[1:]]
        self._validate(first, 1)
        more = self._pace.comparison / FIRST_ROUNDS * len(rules[1:])
        if load_division(self._out) is None and more <= RULES_SHARE * self._budget.left:
            self._validate(rules[1:], 1)
        begun = [one for one in rules if self._validation.rounds_of(one.name)]
        best = self._validation.best(begun, 1)  # the others are not worth more runs
        self._candidates = [one for one in self._candidates if one.file or one is best]
        self._validate(self._candidates, FIRST_ROUNDS)
        self._keep_best(FIRST_ROUNDS)

    def _fixed_costs(self) -> list[TaskCosts]:
        """Run the fixed sizes: all tasks with the first seed, then more as time permits."""
        plan, total = self._plan, self._budget.total
        least = sum(expected_curves(plan, name) for name in plan.tasks)
        most = plan.seeds * least

        def tick() -> None:
            made = min(count_curves(self._curves), most)
            self._stages.show("fixed sizes", made, most, sure=least)

        tick()
        return all_costs(
            *(plan, self._curves, self._executor),
            until=time.monotonic() + CURVES_SHARE * total - self._budget.spent,
            patience=max(CURVES_SHARE * total, _PATIENCE),
            tick=tick,
        )

    def _search(self, costs: Sequence[TaskCosts], seconds: float) -> None:
        """Search for a schedule; in a training that goes on, what was found is there at once."""
        tested = (self._out / "evaluation").exists()  # what it compares is settled
        search = ScheduleSearch(
            self._plan, costs, self._actions, self._card, self._out / "learning" / "schedules"
        )
        found = search.run(
            best_shifts(costs)[:_SIZES],
            self._executor,
            lambda done, total: self._stages.show("schedules", done, max(total, 1), sure=0.0),
            time.monotonic() + (0.0 if tested else seconds),
            self._run_seconds,
        )
        self._candidates += found
        self._validate(found, FIRST_ROUNDS)
        self._keep_best(FIRST_ROUNDS)

    def _validate(self, candidates: Sequence[Candidate], rounds: int) -> None:
        """Run what is missing of candidates in so many rounds."""

        def progress(done: int, total: int) -> None:
            after = self._divided(self._budget.left).test_seconds if done else 0.0
            self._stages.show("comparing", done, max(total, 1), after=after)

        self._validation.run(candidates, rounds, self._executor, progress)

    def _keep_best(self, rounds: int) -> Candidate:
        """Keep the best policy file so far: the shipped one if none is clearly better."""
        validation = self._validation
        files = [
            one for one in self._candidates if one.file and validation.rounds_of(one.name) >= rounds
        ]
        best = validation.surest(SHIPPED, files, rounds)
        keep(self._plan, best, self._out, validation=validation.scores(self._candidates))
        return best

    def _division(self) -> Division:
        """Return how the time is divided; once that is settled, as it was."""
        known = load_division(self._out)
        if known is None:
            known = self._divided(self._budget.left)
            known.save(self._out)
        return known

    def _divided(self, left: float) -> Division:
        plan = self._plan
        return divide(
            *(left, self._run_seconds),
            tasks=len(plan.tasks),
            starts=len(plan.starts),
            seeds=plan.seeds,
            sizes=sum(expected_curves(plan, name) for name in plan.tasks),
        )

    def _learn(self, costs: Sequence[TaskCosts], seconds: float) -> None:
        """Learn in segments, each followed by a comparison, until the time is over."""
        end = time.monotonic() + max(seconds, 0.0)
        tested = (self._out / "evaluation").exists()  # what it compares is settled
        learner: Learner | None = None
        segments = self._pace.segments(seconds)
        with ExitStack() as stack:
            for number in range(1, MOST_SEGMENTS + 1):
                name = f"learned {number}"
                path = candidate_file(self._out / "candidates", name)
                if not path.exists():
                    left = end - time.monotonic()
                    if tested or left < _SHORTEST_SEGMENT or number > segments:
                        break
                    if learner is None:
                        start, room = stack.enter_context(open_servers(self._cluster))
                        learner = Learner(self._plan, costs, self._out / "learning", room, start)
                        stack.callback(learner.close)
                    share = self._pace.learning(left / (segments + 1 - number))
                    segment = next_segment(
                        *(number, path, max(share, _SHORTEST_SEGMENT), self._candidates),
                        lambda some: self._validation.best(some, FIRST_ROUNDS),
                    )
                    learner.learn(segment, self._report(number, segments))
                self._candidates.append(Candidate(name, str(path), "learned"))
                self._validate(self._candidates[-1:], FIRST_ROUNDS)
                self._keep_best(FIRST_ROUNDS)

    def _report(self, number: int, segments: int):
        show = self._stages.show
        return lambda what, share: show(f"{what} ({number} of {segments})", share, 1.0, sure=0.0)

    def _choose(self, rounds: int) -> tuple[Candidate, Candidate]:
        """Return what is kept and the best rule, after as many runs as a race through `rounds`."""
        validation = self._validation
        rules = [one for one in self._candidates if not one.file]
        rule = validation.best(rules, FIRST_ROUNDS)
        files = [one for one in self._candidates if one.file and one is not SHIPPED]
        field = [*validation.ranked(files)[: SHORTLIST - 2], rule]
        each = (rounds - FIRST_ROUNDS) * RACING
        return self._keep_best(race(validation, SHIPPED, field, each, self._validate)), rule

    def _test(self, kept: Candidate, rule: Candidate, division: Division) -> Outcome:
        """Run what is kept beside what it is to be better than, on fresh seeds."""
        plan = self._plan
        sizes = [one for one in self._candidates if one.kind == "size"]
        size = self._validation.best(sizes, FIRST_ROUNDS)
        compared = list(dict.fromkeys([kept, SHIPPED, STAYING, size, rule]))
        rows = evaluate(
            plan,
            compared,
            division.test_seeds,
            self._out / "evaluation",
            jobs=os.cpu_count() or 1 if self._cluster else self._executor.width,
            references=self._curves,
            on_progress=lambda done, total: self._stages.show(
                "testing", done, total, expected=division.test_seconds
            ),
        )
        found = scores(plan, rows, compared, kept.policy)
        path = keep(
            *(plan, kept, self._out),
            validation=self._validation.scores(self._candidates),
            tested=found,
            test_seeds=division.test_seeds,
        )
        better = self._validation.ranked([kept, rule])[0] is rule
        return Outcome(path, kept, found, division.test_seeds, rule.name if better else None)
