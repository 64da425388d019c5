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

import time
from collections.abc import Sequence
from pathlib import Path

from rlbatch.agents.evaluate.fixed_curves import size_grid
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
    FIRST_SEEDS,
    SCHEDULES_SHARE,
    SHORTLIST,
    Budget,
    Division,
    divide,
    load_division,
)
from rlbatch.agents.own_tasks.evaluation import evaluate, scores
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts, all_costs, cached_task, count_curves
from rlbatch.agents.own_tasks.keeping import POLICY_FILE, keep
from rlbatch.agents.own_tasks.learning import ROUNDS, Learner, Segment, recipe_of
from rlbatch.agents.own_tasks.outcome import Display, Outcome
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.schedules import ScheduleSearch
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.envs.threads import one_thread
from rlbatch.files import lock_folder, unlock
from rlbatch.policy.card import PolicyCard

_SEGMENTS = 8  # at most, of learning
_SHORTEST_SEGMENT = 20.0  # seconds
_LEARNING_SHARE = 0.85  # of a segment's time; the rest is for the comparison after it


@one_thread()
def train_on_tasks(
    plan: Plan, out: Path, *, minutes: float, jobs: int, display: Display
) -> Outcome:
    """Train on one's own tasks in about so many minutes, or go on with it.

    Args:
        plan: What is asked for; already kept in the folder.
        out: The folder.
        minutes: Of all beginnings together. What cannot be left out takes longer if it must.
        jobs: Processes.
        display: Shows the progress.

    Raises:
        ConfigurationError: No fixed size reaches a task's target, or one of them at once.
        EpisodeLogError: Another process trains in the folder.
    """
    lock = lock_folder(out)
    budget = Budget(out, minutes)
    try:
        with open_executor(jobs) as executor:
            return _Training(plan, out, budget, executor, display).run()
    finally:
        budget.save()
        unlock(lock)


class _Training:
    def __init__(
        self, plan: Plan, out: Path, budget: Budget, executor: Executor, display: Display
    ) -> None:
        self._plan, self._out, self._budget = plan, out, budget
        self._executor, self._display = executor, display
        self._curves = out / "curves"
        self._candidates: list[Candidate] = [SHIPPED]
        recipe = recipe_of(plan)
        self._actions = recipe.actions
        self._card = PolicyCard(
            objectives=("target",),
            couplings=(plan.coupling,),
            noise_rate=0.0,
            recipe=recipe.name,
            recipe_hash=recipe.digest(),
        )
        self._stage, self._stage_begun = "", time.monotonic()
        if not (out / POLICY_FILE).exists():
            keep(plan, SHIPPED, out, validation={}, validation_seeds=0)

    def run(self) -> Outcome:
        costs = self._fixed_costs()
        self._validation = Validation(self._plan, costs, self._out / "validation.jsonl")
        self._candidates += baselines(
            self._out / "candidates", self._actions, self._card, best_shifts(costs)[:2]
        )
        run_seconds = self._validate(self._candidates, 1)
        rules = [one for one in self._candidates if not one.file]
        best = self._validation.best(rules, 1)  # the others are not worth more runs
        self._candidates = [one for one in self._candidates if one.file or one is best]
        self._validate(self._candidates, FIRST_SEEDS)
        self._keep_best(FIRST_SEEDS)
        division = load_division(self._out) or self._division(run_seconds)
        self._search(costs, SCHEDULES_SHARE * (self._budget.left - division.reserved))
        self._learn(costs, self._budget.left - division.reserved)
        kept, rule = self._choose(division.validation_seeds)
        return self._test(kept, rule, division)

    def _show(
        self, what: str, done: float, total: float, *, sure: bool = True, expected: float = 0.0
    ) -> None:
        """Show the progress; a stage that is `sure` is done to its end, over time if need be."""
        now = time.monotonic()
        if what != self._stage:
            self._stage, self._stage_begun = what, now
        spent = now - self._stage_begun
        need = max(expected - spent, 0.0)
        if sure and done > 0:
            need = spent / done * (total - done)
        self._display(what, done, total, max(self._budget.left, need))

    def _fixed_costs(self) -> list[TaskCosts]:
        """Run the fixed sizes: all tasks with the first seed, then more as time permits."""
        plan, until = self._plan, time.monotonic() + CURVES_SHARE * self._budget.total
        total = plan.seeds * sum(len(size_grid(cached_task(name))) for name in plan.tasks)

        def tick() -> None:
            self._show("fixed sizes", min(count_curves(self._curves), total), total)

        tick()
        return all_costs(plan, self._curves, self._executor, until=until, tick=tick)

    def _search(self, costs: Sequence[TaskCosts], seconds: float) -> None:
        """Search for a schedule; in a training that goes on, what was found is there at once."""
        tested = (self._out / "evaluation").exists()  # what it compares is settled
        search = ScheduleSearch(
            self._plan, costs, self._actions, self._card, self._out / "learning" / "schedules"
        )
        found = search.run(
            best_shifts(costs)[0],
            self._executor,
            lambda done, total: self._show("schedules", done, max(total, 1), sure=False),
            time.monotonic() + (0.0 if tested else seconds),
        )
        self._candidates += found
        self._validate(found, FIRST_SEEDS)
        self._keep_best(FIRST_SEEDS)

    def _file(self, name: str) -> Path:
        return candidate_file(self._out / "candidates", name)

    def _validate(self, candidates: Sequence[Candidate], seeds: int) -> float:
        """Run candidates, and return the seconds that a run took, of those side by side."""
        begun, made = time.monotonic(), 0

        def progress(done: int, total: int) -> None:
            nonlocal made
            made = total
            self._show("comparing", done, max(total, 1))

        self._validation.run(candidates, seeds, self._executor, progress)
        return (time.monotonic() - begun) / max(made, 1)

    def _keep_best(self, seeds: int) -> Candidate:
        """Keep the best policy file so far: the shipped one if none is better."""
        files = [one for one in self._candidates if one.file]
        files = [one for one in files if self._validation.seeds_of(one.name) >= seeds]
        best = self._validation.best(files, seeds)
        keep(
            *(self._plan, best, self._out),
            validation=self._scores(seeds),
            validation_seeds=seeds,
        )
        return best

    def _scores(self, seeds: int) -> dict[str, float]:
        return {
            one.name: self._validation.score(one.name, seeds)
            for one in self._candidates
            if self._validation.seeds_of(one.name) >= seeds
        }

    def _division(self, run_seconds: float) -> Division:
        plan = self._plan
        division = divide(
            self._budget.left,
            run_seconds,
            tasks=len(plan.tasks),
            starts=len(plan.starts),
            seeds=plan.seeds,
            sizes=sum(len(size_grid(cached_task(name))) for name in plan.tasks),
        )
        division.save(self._out)
        return division

    def _learn(self, costs: Sequence[TaskCosts], seconds: float) -> None:
        """Learn in segments, each followed by a comparison, until the time is over."""
        end = time.monotonic() + max(seconds, 0.0)
        learner: Learner | None = None
        tested = (self._out / "evaluation").exists()  # what it compares is settled
        try:
            for number in range(1, _SEGMENTS + 1):
                name = f"learned {number}"
                candidate = Candidate(name, str(self._file(name)), "learned")
                if not self._file(name).exists():
                    left = end - time.monotonic()
                    if tested or left < _SHORTEST_SEGMENT:
                        break
                    if learner is None:
                        folder = self._out / "learning"
                        learner = Learner(self._plan, costs, folder, self._executor.width)
                    share = _LEARNING_SHARE * left / (_SEGMENTS + 1 - number)
                    length = max(share, _SHORTEST_SEGMENT)
                    segment = Segment(number, self._source(number), self._file(name), length)
                    learner.learn(segment, self._report(number))
                self._candidates.append(candidate)
                self._validate([candidate], FIRST_SEEDS)
                self._keep_best(FIRST_SEEDS)
                self._budget.save()
        finally:
            if learner is not None:
                learner.close()

    def _source(self, number: int) -> Path | None:
        """Return whose weights a segment begins with: for PPO the best learned ones so far."""
        learned = [one for one in self._candidates if one.kind == "learned"]
        if not learned:
            return None
        chosen = learned[-1] if number <= ROUNDS else self._validation.best(learned, FIRST_SEEDS)
        return Path(chosen.policy).with_suffix(".zip")

    def _report(self, number: int):
        def report(what: str, share: float) -> None:
            self._show(f"{what} ({number} of {_SEGMENTS})", share, 1.0, sure=False)

        return report

    def _choose(self, seeds: int) -> tuple[Candidate, Candidate]:
        """Return what is kept and the best rule, compared on more seeds than the others were."""
        validation = self._validation
        files = sorted(
            (one for one in self._candidates if one.file and one is not SHIPPED),
            key=lambda one: validation.score(one.name, FIRST_SEEDS),
        )
        sizes = [one for one in files if one.kind == "size"][:1]
        rules = [one for one in self._candidates if not one.file]
        rule = validation.best(rules, FIRST_SEEDS)
        finalists = dict.fromkeys([SHIPPED, *files[: SHORTLIST - 3], *sizes, rule])
        self._validate(list(finalists), seeds)
        return self._keep_best(seeds), rule

    def _test(self, kept: Candidate, rule: Candidate, division: Division) -> Outcome:
        """Run what is kept beside what it is to be better than, on fresh seeds."""
        plan, seeds = self._plan, division.validation_seeds
        sizes = [one for one in self._candidates if one.kind == "size"]
        size = self._validation.best(sizes, FIRST_SEEDS)
        compared = list(dict.fromkeys([kept, SHIPPED, STAYING, size, rule]))
        expected = division.test_seconds

        def progress(done: int, total: int) -> None:
            self._show("testing", done, total, expected=expected)

        rows = evaluate(
            plan,
            compared,
            division.test_seeds,
            self._out / "evaluation",
            jobs=self._executor.width,
            references=self._curves,
            on_progress=progress,
        )
        found = scores(plan, rows, compared, kept.policy)
        path = keep(
            *(plan, kept, self._out),
            validation=self._scores(seeds),
            validation_seeds=seeds,
            tested=found,
            test_seeds=division.test_seeds,
        )
        better = self._validation.score(rule.name, seeds) < self._validation.score(kept.name, seeds)
        return Outcome(path, kept, found, division.test_seeds, rule.name if better else None)
