"""A benchmark's runs on machines that share no files with the one that keeps the results.

Each run gets the fixed runs that are known by now, works in a folder of its own, and returns what
it wrote there. The caller alone writes to the benchmark's folder: all of a run at once, its result
last. So a run whose worker or node was lost leaves nothing behind, and is done again as a whole.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rlbatch
from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.frontier_runs import FrontierRuns, Plan, plans
from rlbatch.agents.evaluate.group import RESULTS_FILE, Cell, GroupWork, run_group
from rlbatch.agents.evaluate.planned_runs import fixed_setting, frontier_groups
from rlbatch.agents.evaluate.settings import BenchSettings, Group, parse_epochs
from rlbatch.agents.executor import Executor
from rlbatch.agents.search.searcher_names import parse_searcher
from rlbatch.envs.task import planned_length, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.files import append_bytes

OUT, REFERENCES = "out", "references"

Files = Mapping[str, bytes]
"""Paths below a folder with `OUT` and `REFERENCES` in it, and their contents."""


@dataclass(frozen=True)
class CarriedRun:
    """One run to be made elsewhere.

    Attributes:
        settings: Of the benchmark.
        group: Task, coupling and seed.
        identity: Of the benchmark on the machine that asks, see `identity_text`.
        what: Profile, start size and policy of a controlled run, or the plan of a fixed one.
        files: What is known.
        logs: Write an episode log.
    """

    settings: BenchSettings
    group: Group
    identity: str
    what: Cell | Plan
    files: Files = field(default_factory=dict[str, bytes])
    logs: bool = False


def identity_text(settings: BenchSettings) -> str:
    """Return what must be equal on two machines for runs of both to be comparable, as JSON."""
    return json.dumps({"version": rlbatch.__version__, **settings.identity()}, sort_keys=True)


def run_carried(run: CarriedRun) -> dict[str, bytes]:
    """Make a run in a new folder and return what was added to each of its files.

    Raises:
        ConfigurationError: This machine has another version of rlbatch, of a task or of a policy.
    """
    _require_same(run)
    with tempfile.TemporaryDirectory(prefix="rlbatch-") as name:
        folder = Path(name)
        for relative, content in run.files.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if isinstance(run.what, Plan):
            _fixed_run(run, run.what, folder / REFERENCES)
        else:
            run_group(
                GroupWork(
                    run.settings,
                    run.group,
                    folder / OUT,
                    folder / REFERENCES,
                    run.logs,
                    (run.what,),
                )
            )
        return _added(folder, run.files)


def _fixed_run(run: CarriedRun, plan: Plan, references: Path) -> None:
    setting = fixed_setting(run.settings, run.group, resolve_task(run.group.task))
    path = curve_path(references, setting.task_id, run.group.coupling, run.group.seed)
    FrontierRuns(setting, CurveStore(path)).end(plan)


def make_frontiers(
    executor: Executor,
    settings: BenchSettings,
    references: Path,
    update: Callable[[], None],
) -> None:
    """Make the missing fixed runs of runs of so many epochs, each a run of its own."""
    identity = identity_text(settings)
    queue: deque[tuple[tuple[Group, Plan], CarriedRun]] = deque()
    for group in frontier_groups(settings):
        for plan in _missing_plans(settings, group, references):
            queue.append(((group, plan), CarriedRun(settings, group, identity, plan)))
    for _, added in executor.run(run_carried, queue):
        _keep(added, Path(), references)
        update()


def run_groups(executor: Executor, works: Sequence[GroupWork], update: Callable[[], None]) -> None:
    """Run what is to do of groups, and append the results in this process.

    The first run of a group makes the fixed runs that the others are held against, so these start
    when it has ended. Policies that stand for a search run in this process: they share trials.

    Args:
        executor: Where they run.
        works: Groups of one benchmark.
        update: Called after each run.
    """
    identity = identity_text(works[0].settings) if works else ""
    waiting: dict[Group, tuple[GroupWork, list[Cell]]] = {}
    queue: deque[tuple[tuple[Group, Cell], CarriedRun]] = deque()

    def put(work: GroupWork, cells: Sequence[Cell]) -> None:
        files = _known_curves(work) if cells else {}
        for cell in cells:
            run = CarriedRun(work.settings, work.group, identity, cell, files, work.logs)
            queue.append(((work.group, cell), run))

    for work in works:
        cells = [cell for cell in work.todo if parse_searcher(cell[2]) is None]
        waiting[work.group] = work, cells[1:]
        put(work, cells[:1])
    for (group, _), added in executor.run(run_carried, queue):
        work, rest = waiting[group]
        _keep(added, work.out, work.references)
        update()
        waiting[group] = work, []
        put(work, rest)
    for work in works:
        searches = tuple(cell for cell in work.todo if parse_searcher(cell[2]) is not None)
        if searches:
            run_group(replace(work, todo=searches), update)


def _missing_plans(settings: BenchSettings, group: Group, references: Path) -> list[Plan]:
    task = resolve_task(group.task)
    setting = fixed_setting(settings, group, task)
    length = planned_length(
        parse_epochs(settings.objective) or 1.0, setting.dataset_size, task.batch_size
    )
    path = curve_path(references, setting.task_id, group.coupling, group.seed)
    runs = FrontierRuns(setting, open_curves(path))
    return [plan for plan in plans(setting, length) if not runs.knows(plan)]


def _known_curves(work: GroupWork) -> dict[str, bytes]:
    """Return the files of fixed runs that the runs of a group look at."""
    settings, group, files = work.settings, work.group, dict[str, bytes]()
    same = [one for one in frontier_groups(settings) if _alike(one, group)] or [group]
    for one in same:
        setting = fixed_setting(settings, one, resolve_task(one.task))
        path = curve_path(work.references, setting.task_id, one.coupling, one.seed)
        open_curves(path)  # begins it with what ships
        if path.is_file():
            files[f"{REFERENCES}/{path.name}"] = path.read_bytes()
    return files


def _alike(one: Group, other: Group) -> bool:
    return (one.task, one.coupling) == (other.task, other.coupling)


def _added(folder: Path, before: Files) -> dict[str, bytes]:
    added: dict[str, bytes] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        content = path.read_bytes()[len(before.get(name, b"")) :]
        if content:
            added[name] = content
    return added


def _keep(added: Files, out: Path, references: Path) -> None:
    """Append what a run wrote; its result comes last: with it the run counts as finished."""
    for name in sorted(added, key=lambda name: name == f"{OUT}/{RESULTS_FILE}"):
        top, _, relative = name.partition("/")
        append_bytes((out if top == OUT else references) / relative, added[name])


def _require_same(run: CarriedRun) -> None:
    here = identity_text(run.settings)
    if here == run.identity:
        return
    asked, found = json.loads(run.identity), json.loads(here)
    names = ", ".join(_different(asked, found))
    raise ConfigurationError(
        f"{socket.gethostname()} has other files than the machine that asked (different: {names}). "
        "Install the same version and put the same files at the same paths on every node."
    )


def _different(asked: Mapping[str, object], found: Mapping[str, object]) -> Iterator[str]:
    yield from (key for key in asked if asked[key] != found.get(key))


def require_computed_clocks(settings: BenchSettings) -> None:
    """Refuse what cannot be compared between machines.

    Raises:
        ConfigurationError: Cost is counted on the wall clock.
    """
    timed = [name for name in settings.profiles if resolve_clock(name).profile is None]
    if timed:
        raise ConfigurationError(
            f"Seconds of several machines do not compare: --cluster needs computed clocks, got "
            f"{', '.join(timed)}. Give other profiles, or leave --cluster out."
        )
