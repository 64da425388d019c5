"""Trials side by side in processes or on a cluster, each kept the moment it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

from rlbatch.agents.executor import Executor, open_executor
from rlbatch.agents.search.conditions import Conditions, TrialRunner
from rlbatch.agents.search.trial_store import TrialStore
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec

Evaluate = Callable[[Sequence[tuple[TrialSpec, Stop]]], dict[TrialSpec, Outcome]]
"""Returns the outcomes of trials, of which it runs those that are not known yet."""

OnTrial = Callable[[TrialSpec, Outcome], None]


@contextmanager
def evaluator(
    conditions: Conditions,
    store: TrialStore,
    executor: Executor | None = None,
    on_trial: OnTrial | None = None,
) -> Generator[Evaluate]:
    """Run a block with what evaluates trials.

    Args:
        conditions: Of all trials.
        store: Where finished ones are kept, by this process alone.
        executor: Where they run; None for this process.
        on_trial: Called after each trial that was run, in this process.

    Yields:
        The function.
    """
    _runner.cache_clear()  # a task's file may have changed since another search in this process
    if executor is None:
        with open_executor() as serial:
            yield _Known(conditions, store, serial, on_trial)
    else:
        yield _Known(conditions, store, executor, on_trial)
    _runner.cache_clear()


class _Known:
    """Evaluates what the store does not hold."""

    def __init__(
        self,
        conditions: Conditions,
        store: TrialStore,
        executor: Executor,
        on_trial: OnTrial | None,
    ) -> None:
        self._run = partial(_run, conditions)
        self._store, self._executor, self._on_trial = store, executor, on_trial

    def __call__(self, work: Sequence[tuple[TrialSpec, Stop]]) -> dict[TrialSpec, Outcome]:
        known = self._store.all()
        missing = {spec: stop for spec, stop in work if spec not in known}
        queue = deque((spec, (spec, stop)) for spec, stop in missing.items())
        for spec, outcome in self._executor.run(self._run, queue):
            self._store.put(spec, outcome)
            known[spec] = outcome
            if self._on_trial is not None:
                self._on_trial(spec, outcome)
        return {spec: known[spec] for spec, _ in work}


def _run(conditions: Conditions, item: tuple[TrialSpec, Stop]) -> Outcome:
    return _runner(conditions).run(*item)


@lru_cache(maxsize=1)  # loading a task can take seconds
def _runner(conditions: Conditions) -> TrialRunner:
    return TrialRunner(conditions)
