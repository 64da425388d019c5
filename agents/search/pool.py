"""Trials side by side in processes, each kept the moment it ends."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager

from rlbatch.agents.evaluate.bench import start_worker
from rlbatch.agents.search.conditions import Conditions, TrialRunner
from rlbatch.agents.search.trial_store import TrialStore
from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec
from rlbatch.errors import ConfigurationError

Evaluate = Callable[[Sequence[tuple[TrialSpec, Stop]]], dict[TrialSpec, Outcome]]
"""Returns the outcomes of trials, of which it runs those that are not known yet."""

OnTrial = Callable[[TrialSpec, Outcome], None]

_worker: TrialRunner | None = None  # of a pool's process: loading a task can take seconds


@contextmanager
def evaluator(
    conditions: Conditions,
    store: TrialStore,
    jobs: int = 1,
    on_trial: OnTrial | None = None,
) -> Generator[Evaluate]:
    """Run a block with what evaluates trials.

    Args:
        conditions: Of all trials.
        store: Where finished ones are kept.
        jobs: Processes; one means this one.
        on_trial: Called after each trial that was run, in this process.

    Yields:
        The function. After an error or Ctrl-C the processes end at once; what they were at is lost.

    Raises:
        ConfigurationError: `jobs` is no positive number.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs must be at least 1, got {jobs}.")
    if jobs == 1:
        runner = TrialRunner(conditions)
        yield _Known(store, lambda work: _one_by_one(runner, work), on_trial)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_prepare, initargs=(os.getpid(), conditions)
    ) as pool:
        try:
            yield _Known(store, lambda work: _side_by_side(pool, work), on_trial)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


class _Known:
    """Evaluates what the store does not hold."""

    def __init__(
        self,
        store: TrialStore,
        run: Callable[[Mapping[TrialSpec, Stop]], Generator[tuple[TrialSpec, Outcome]]],
        on_trial: OnTrial | None,
    ) -> None:
        self._store, self._run, self._on_trial = store, run, on_trial

    def __call__(self, work: Sequence[tuple[TrialSpec, Stop]]) -> dict[TrialSpec, Outcome]:
        known = self._store.all()
        missing = {spec: stop for spec, stop in work if spec not in known}
        for spec, outcome in self._run(missing):
            self._store.put(spec, outcome)
            known[spec] = outcome
            if self._on_trial is not None:
                self._on_trial(spec, outcome)
        return {spec: known[spec] for spec, _ in work}


def _one_by_one(
    runner: TrialRunner, work: Mapping[TrialSpec, Stop]
) -> Generator[tuple[TrialSpec, Outcome]]:
    for spec, stop in work.items():
        yield spec, runner.run(spec, stop)


def _side_by_side(
    pool: ProcessPoolExecutor, work: Mapping[TrialSpec, Stop]
) -> Generator[tuple[TrialSpec, Outcome]]:
    futures = {pool.submit(_run, spec, stop): spec for spec, stop in work.items()}
    while futures:
        for future in wait(futures, return_when=FIRST_COMPLETED).done:
            yield futures.pop(future), future.result()


def _prepare(parent: int, conditions: Conditions) -> None:
    global _worker  # noqa: PLW0603 - a process of the pool has one search
    start_worker(parent)
    _worker = TrialRunner(conditions)


def _run(spec: TrialSpec, stop: Stop) -> Outcome:
    if _worker is None:
        raise RuntimeError("A process of the pool was not prepared.")
    return _worker.run(spec, stop)
