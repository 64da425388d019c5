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
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate import carried, simulated
from rlbatch.agents.evaluate.curve_store import cut_torn_line
from rlbatch.agents.evaluate.frontier_runs import made_ends, plans, run_frontier
from rlbatch.agents.evaluate.group import (
    RESULTS_FILE,
    TIMINGS_FILE,
    TRAJECTORIES_FILE,
    GroupWork,
    missing_cells,
    run_group,
)
from rlbatch.agents.evaluate.line_count import LineCount
from rlbatch.agents.evaluate.planned_runs import frontier_works
from rlbatch.agents.evaluate.rows import Row, finished_cells, read_results, sort_file
from rlbatch.agents.evaluate.settings import (
    SIMULATED,
    BenchSettings,
    groups,
    simulated_count,
    start_factors,
)
from rlbatch.agents.executor import Executor, open_executor
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import one_thread
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
    cluster: str | None = None,
    references: Path | None = None,
    logs: bool = False,
    on_progress: Progress | None = None,
    on_fixed: Progress | None = None,
) -> list[Row]:
    """Run what is missing of a benchmark and return all of its results, sorted.

    Args:
        settings: What to run.
        out: Folder for the results; a benchmark of equal settings in it, or of fewer policies, is
            continued.
        jobs: Processes. On the wall clock they disturb each other.
        cluster: Address of a Ray cluster, as for `open_executor`. Only this process writes to
            `out` and `references`; tasks and policies from files must be on every node.
        references: Folder of fixed curves, to share them among benchmarks; None takes one in `out`.
        logs: Also write an episode log of each real run, under `runs/`.
        on_progress: Called with the runs that are finished and the number of all.
        on_fixed: Likewise, of the fixed runs that make the frontier under `epochs=N`.

    Raises:
        ConfigurationError: The folder holds something else, `jobs` is no positive number, or a
            cluster is asked for that is not there, or for the wall clock.
        EpisodeLogError: Another process is writing to the folder.
    """
    if cluster is not None:
        carried.require_computed_clocks(settings)
    with open_executor(jobs, cluster) as executor:
        prepare_folder(settings, out)
        lock = lock_folder(out)
        try:
            # Not before: a benchmark that is still running is not to find others in its folder.
            write_atomically(out / SETTINGS_FILE, json.dumps(settings.identity(), indent=2) + "\n")
            for name in (RESULTS_FILE, TRAJECTORIES_FILE, TIMINGS_FILE):
                cut_torn_line(out / name)
            folder = out / REFERENCES if references is None else references
            _make_frontiers(executor, settings, folder, on_fixed)
            counter = _Counter(out / RESULTS_FILE, _count(settings), on_progress)
            for task in settings.tasks:
                if task.startswith(SIMULATED):
                    simulated.run_missing(settings, task, out / RESULTS_FILE, counter.update)
            done = finished_cells(out / RESULTS_FILE)
            works = [
                GroupWork(settings, group, out, folder, logs, todo)
                for group in groups(settings)
                if (todo := missing_cells(settings, group, done))
            ]
            _run_groups(executor, works, counter.update)
            sort_file(out / RESULTS_FILE)
            return read_results(out)
        finally:
            unlock(lock)


class _Counter:
    """Tells how many runs have finished, by the lines of the results."""

    def __init__(self, path: Path, total: int, on_progress: Progress | None) -> None:
        self._lines, self._total, self._on_progress = LineCount([path]), total, on_progress
        self.update()

    def update(self) -> None:
        if self._on_progress is not None:
            self._on_progress(min(self._lines.total(), self._total), self._total)


def _run_groups(executor: Executor, works: Sequence[GroupWork], update: Callable[[], None]) -> None:
    if not executor.shares_files:
        carried.run_groups(executor, works, update)
        return
    run = partial(run_group, **_here(executor, on_row=update))
    for _ in executor.run(run, deque((work.group, work) for work in works), update):
        update()


def _here(executor: Executor, **calls: Callable[[], None]) -> dict[str, Any]:
    """Return arguments: calls where runs are in this process, else the process to end with."""
    return dict(calls) if executor.width == 1 else {"parent": os.getpid()}


def _make_frontiers(
    executor: Executor, settings: BenchSettings, references: Path, on_fixed: Progress | None
) -> None:
    """Make the fixed runs of every seed first: each run is held against the mean over all."""
    works = frontier_works(settings, references)
    if not works:
        return
    total = sum(len(plans(work.setting, work.planned)) for work in works)
    made = sum(made_ends(work) for work in works)
    lines = LineCount(work.path for work in works)
    before = lines.total()

    def update() -> None:
        if on_fixed is not None:
            on_fixed(min(made + lines.total() - before, total), total)

    update()
    if not executor.shares_files:
        carried.make_frontiers(executor, settings, references, update)
        return
    run = partial(run_frontier, **_here(executor, on_end=update))
    for _ in executor.run(run, deque((work.path, work) for work in works), update):
        update()


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
