"""The demonstration: runs that start too small, right and too large, by whatever decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.curve_store import read_lines
from rlbatch.agents.evaluate.group import TRAJECTORIES_FILE, latest_log
from rlbatch.agents.evaluate.rows import Row, cell_key
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.envs.objectives import UNREACHED_RATIO

RULE = "goodput"
STARTS = (0.125, 1.0, 8.0)
_NAMES = {0.125: "an eighth", 0.25: "a quarter", 0.5: "a half", 1.0: "the task's own size"}


@dataclass(frozen=True)
class Cost:
    """What it took to reach the target, over all seeds.

    Attributes:
        mean: Mean over seeds, in the clock's unit. A run that did not get there counts with what it
            had spent when it was given up, `UNREACHED_RATIO` times the best fixed size's cost.
        reached: Seeds that got there.
        seeds: Of how many.
    """

    mean: float
    reached: int
    seeds: int

    @property
    def complete(self) -> bool:
        """Whether every seed got there; else `mean` is a lower bound."""
        return self.reached == self.seeds

    def __str__(self) -> str:
        return f"{'' if self.complete else '> '}{self.mean:,.{0 if self.mean >= 1000 else 2}f}"


@dataclass(frozen=True)
class Start:
    """The runs from one start.

    Attributes:
        batch_size: The start.
        name: It in words, relative to the task's own size.
        staying: Cost of staying there.
        rule: Cost under the goodput rule.
        controller: Cost under what is demonstrated.
        best: Cost of the best fixed size in hindsight, seed by seed.
        best_sizes: These sizes, smallest first.
        sizes: What the controller used on the first seed, in order.
        log: Folder of that run's log.
    """

    batch_size: int
    name: str
    staying: Cost
    rule: Cost
    controller: Cost
    best: Cost
    best_sizes: tuple[int, ...]
    sizes: tuple[int, ...]
    log: str

    def others(self) -> list[tuple[str, Cost]]:
        """Return what the controller is held against, in words, with its cost."""
        return [
            ("staying", self.staying),
            ("the goodput rule", self.rule),
            ("the best fixed size", self.best),
        ]


@dataclass(frozen=True)
class Demo:
    """What was measured.

    Attributes:
        task: What was trained.
        policy: What is demonstrated.
        profile: Whose seconds count.
        seeds: Number of paired seeds.
        starts: Smallest first.
        rows: All results.
    """

    task: str
    policy: str
    profile: str
    seeds: int
    starts: tuple[Start, ...]
    rows: Sequence[Row]


def run_demo(  # noqa: PLR0913 - every argument is a choice of the user
    out: Path,
    *,
    task: str,
    policy: str = "default",
    profile: str = "cpu",
    starts: tuple[float, ...] = STARTS,
    coupling: str = "sqrt",
    seeds: int = 2,
    jobs: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Demo:
    """Measure, with episode logs under `out/runs`.

    Args:
        out: New folder, or that of the same demonstration to go on with.
        task: What is trained.
        policy: What decides.
        profile: Clock that counts.
        starts: First batch sizes relative to the task's.
        coupling: How the learning rate follows the batch size.
        seeds: Number of paired seeds.
        jobs: Processes.
        on_progress: Called with the runs that are finished and their number.
    """
    policies = tuple(dict.fromkeys((RULE, policy)))
    settings = BenchSettings((task,), policies, (coupling,), (profile,), starts, seeds)
    rows = run_bench(settings, out, jobs=jobs, logs=True, on_progress=on_progress)
    shapes = trajectories(out)
    by_size = groupby(rows, key=lambda row: row["start_batch_size"])
    found = (_start(list(mine), policy, shapes, out) for _, mine in by_size)
    return Demo(task, policy, profile, seeds, tuple(found), rows)


def trajectories(out: Path) -> dict[tuple[object, ...], list[tuple[float, int]]]:
    """Return (cost, batch size) at the start of each chunk, by the run's cell."""
    return {
        tuple(shape["cell"]): [(cost, size) for cost, size in shape["batch_sizes"]]
        for shape in read_lines(out / TRAJECTORIES_FILE)
    }


def _start(
    rows: Sequence[Row],
    policy: str,
    shapes: dict[tuple[object, ...], list[tuple[float, int]]],
    out: Path,
) -> Start:
    ours = [row for row in rows if row["policy"] == policy]
    first = ours[0]
    log = latest_log(out, first)
    return Start(
        batch_size=first["start_batch_size"],
        name=_name(first["start_batch_size"] / first["default_batch_size"]),
        staying=_cost([row["start_cost"] for row in ours], [stays(row) for row in ours]),
        rule=_run_cost([row for row in rows if row["policy"] == RULE]),
        controller=_run_cost(ours),
        best=_cost(
            [row["reference_cost"] for row in ours], [row["reference_reached"] for row in ours]
        ),
        best_sizes=tuple(sorted({row["reference_batch_size"] for row in ours})),
        sizes=tuple(size for size, _ in groupby(size for _, size in shapes[cell_key(first)])),
        log=str(log),
    )


def stays(row: Row) -> bool:
    """Return whether staying at the start reached the target before it was given up."""
    return row["reference_reached"] and row["start_cost"] < UNREACHED_RATIO * row["reference_cost"]


def _run_cost(rows: Sequence[Row]) -> Cost:
    return _cost([row["cost"] for row in rows], [row["reached"] for row in rows])


def _cost(values: Sequence[float], reached: Sequence[bool]) -> Cost:
    return Cost(float(np.mean(values)), sum(reached), len(reached))


def _name(factor: float) -> str:
    return _NAMES.get(factor, f"{factor:.3g} times it")


def verdicts(demo: Demo) -> list[str]:
    """Return in words what each start gave, and then where the controller lost."""
    told: list[str] = []
    lost: list[str] = []
    for start in demo.starts:
        parts = [f"{_judged(start.controller, other)} {name}" for name, other in start.others()]
        where = f"{start.batch_size} ({start.name})"
        told.append(f"From {where} the controller took {parts[0]}, {parts[1]} and {parts[2]}.")
        losses = [name for name, other in start.others() if _worse(start.controller, other)]
        if losses:
            lost.append(f"to {' and '.join(losses)} from {where}")
    ending = f"It lost {'; '.join(lost)}." if lost else "It lost nowhere."
    return [*told, ending]


def _worse(ours: Cost, other: Cost) -> bool:
    return ours.mean / other.mean > 1 + _SAME or (other.complete and not ours.complete)


_SAME = 5e-3  # relative difference in cost that is shown as none


def _judged(ours: Cost, other: Cost) -> str:
    """Return how a cost compares, where either may be a lower bound only."""
    if not ours.complete and not other.complete:
        return "(neither always reached the target) an unknown part of the time of"
    ratio = ours.mean / other.mean
    if abs(ratio - 1) <= _SAME and ours.complete and other.complete:
        return "as much time as"
    least = "" if ours.complete and other.complete else "at least "
    if ours.complete and not other.complete and ratio >= 1:
        return "(it always reached the target, that did not) an unknown part of the time of"
    if not ours.complete and ratio <= 1:
        return "(it did not always reach the target, that did) an unknown multiple of the time of"
    return f"{least}{abs(ratio - 1):.0%} {'less' if ratio < 1 else 'more'} time than"
