"""The benchmark: policies on tasks, couplings, profiles, starts and seeds, paired and resumable.

A folder holds

    bench.json            the settings, with the hash of every file that was compared: policies, and
                          tasks with the modules that they import; others are refused
    results.jsonl         one object a run, appended as runs finish, sorted at the end
    trajectories.jsonl    validations and batch sizes of each real run, for the figures
    timings.jsonl         seconds that each run took on this machine
    references/           learning curves of fixed batch sizes
    runs/                 episode logs, where they are asked for

With computed clocks the same settings give the same `results.jsonl`, byte by byte; `wall_seconds`
is 0 there (the real ones are in `timings.jsonl`) and is measured on the wall clock only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate import simulated
from rlbatch.agents.evaluate.curve_store import cut_torn_line
from rlbatch.agents.evaluate.frontier_runs import FrontierWork, made_ends, plans, run_frontier
from rlbatch.agents.evaluate.group import (
    RESULTS_FILE,
    TIMINGS_FILE,
    TRAJECTORIES_FILE,
    GroupWork,
    run_group,
)
from rlbatch.agents.evaluate.planned_runs import frontier_works
from rlbatch.agents.evaluate.rows import Row, read_results, sort_file
from rlbatch.agents.evaluate.settings import (
    SIMULATED,
    BenchSettings,
    groups,
    simulated_count,
    start_factors,
)
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import one_thread, use_one_thread
from rlbatch.errors import ConfigurationError
from rlbatch.files import lock_folder, unlock, write_atomically
from rlbatch.text import escaped

SETTINGS_FILE, REFERENCES = "bench.json", "references"

Progress = Callable[[int, int], None]


@one_thread()
def run_bench(
    settings: BenchSettings,
    out: Path,
    *,
    jobs: int = 1,
    references: Path | None = None,
    logs: bool = False,
    full_sweep: bool = False,
    on_progress: Progress | None = None,
    on_fixed: Progress | None = None,
) -> list[Row]:
    """Run what is missing of a benchmark and return all of its results, sorted.

    Args:
        settings: What to run.
        out: Folder for the results; a benchmark of equal settings in it, or of fewer policies, is
            continued.
        jobs: Processes. On the wall clock they disturb each other.
        references: Folder of fixed curves, to share them among benchmarks; None takes one in `out`.
        logs: Also write an episode log of each real run, under `runs/`.
        full_sweep: Follow every fixed size up to the cap, even if it is dearer than the best.
        on_progress: Called with the runs that are finished and the number of all.
        on_fixed: Likewise, of the fixed runs that make the frontier under `epochs=N`.

    Raises:
        ConfigurationError: The folder holds something else, or `jobs` is no positive number.
        EpisodeLogError: Another process is writing to the folder.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs must be at least 1, got {jobs}.")
    prepare_folder(settings, out)
    lock = lock_folder(out)
    try:
        # Not before: a benchmark that is still running is not to find others in its folder.
        write_atomically(out / SETTINGS_FILE, json.dumps(settings.identity(), indent=2) + "\n")
        for name in (RESULTS_FILE, TRAJECTORIES_FILE, TIMINGS_FILE):
            cut_torn_line(out / name)
        folder = out / REFERENCES if references is None else references
        _make_frontiers(frontier_works(settings, folder), jobs, on_fixed)
        works = [
            GroupWork(settings, group, out, folder, logs, full_sweep) for group in groups(settings)
        ]
        counter = _Counter(out / RESULTS_FILE, _count(settings), on_progress)
        for task in settings.tasks:
            if task.startswith(SIMULATED):
                simulated.run_missing(settings, task, out / RESULTS_FILE, counter.update)
        if jobs == 1:
            for work in works:
                run_group(work, counter.update)
        else:
            _run_in_processes(run_group, works, jobs, counter.update)
        sort_file(out / RESULTS_FILE)
        return read_results(out)
    finally:
        unlock(lock)


class _Counter:
    """Tells how many runs have finished, by the lines of the results."""

    def __init__(self, path: Path, total: int, on_progress: Progress | None) -> None:
        self._path, self._total, self._on_progress = path, total, on_progress
        self.update()

    def update(self) -> None:
        if self._on_progress is not None:
            lines = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
            self._on_progress(min(lines, self._total), self._total)


def _make_frontiers(works: Sequence[FrontierWork], jobs: int, on_fixed: Progress | None) -> None:
    """Make the fixed runs of every seed first: each run is held against the mean over all."""
    if not works:
        return
    total = sum(len(plans(work.setting, work.planned)) for work in works)

    def update() -> None:
        if on_fixed is not None:
            on_fixed(sum(made_ends(work) for work in works), total)

    update()
    if jobs == 1:
        for work in works:
            run_frontier(work, update)
    else:
        _run_in_processes(run_frontier, works, jobs, update)


def _run_in_processes(
    run: Callable[..., None], works: Sequence[Any], jobs: int, update: Callable[[], None]
) -> None:
    """Run groups side by side. Each process has one thread; none outlives this one for long."""
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(run, work, None, os.getpid()) for work in works}
        try:
            while futures:
                finished, futures = wait(futures, timeout=0.5)[:2]
                update()
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # in the middle of a run, which the next attempt repeats
            raise


def _start_worker(parent: int) -> None:
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: one that was killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def prepare_folder(settings: BenchSettings, out: Path) -> None:
    """Make the folder, or check that it holds a benchmark of the same settings.

    It may hold one of fewer policies: their runs and the fixed ones are kept.

    Raises:
        ConfigurationError: It holds something else.
    """
    identity = settings.identity()
    path = out / SETTINGS_FILE
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file. Name a folder for the results.")
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({error}). Name another folder."
            ) from error
        if not _continues(known, identity):
            different = [key for key in identity if known.get(key) != identity[key]]
            raise ConfigurationError(
                f"{out} holds a benchmark with other settings (different: {', '.join(different)}"
                f"{_other_files(known, identity)}). "
                "Repeat its settings to continue it, with more policies if you like, or name "
                "another folder."
            )
        return
    if out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir()):
        raise ConfigurationError(
            f"{out} is not empty and holds no benchmark. Name a new folder; nothing is overwritten."
        )
    out.mkdir(parents=True, exist_ok=True)


def _other_files(known: dict[str, Any], identity: dict[str, Any]) -> str:
    """Return which files are not those that an earlier part of the benchmark was made with."""
    before, now = known.get("files"), identity["files"]
    if not isinstance(before, dict):
        return ""
    names = [name for name, digest in before.items() if now.get(name) != digest]
    return f": {'; '.join(map(escaped, names))}" if names else ""


def _continues(known: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Return whether a benchmark's settings are another's, with policies added or as they are."""
    same = [key for key in identity if key not in ("policies", "files")]
    if known.keys() != identity.keys() or any(known[key] != identity[key] for key in same):
        return False
    files, policies = known["files"].items(), known["policies"]
    return files <= identity["files"].items() and set(policies) <= set(identity["policies"])


def _count(settings: BenchSettings) -> int:
    policies = len(settings.policies)
    total = 0
    for name in settings.tasks:
        if name.startswith(SIMULATED):
            total += policies * simulated_count(name)
            continue
        runs = policies * len(settings.profiles) * len(start_factors(settings, resolve_task(name)))
        total += runs * len(settings.couplings) * settings.seeds
    return total
