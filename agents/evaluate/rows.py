"""One result: a controlled run beside its reference, as an object of results.jsonl."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.clocks import CostClock
from rlbatch.agents.evaluate.curve_store import read_lines
from rlbatch.agents.evaluate.reference import Reference
from rlbatch.agents.evaluate.run import RunResult
from rlbatch.agents.evaluate.settings import Group
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import ConfigurationError
from rlbatch.files import write_atomically

Row = dict[str, Any]

CELL_FIELDS = (
    "task",
    "policy",
    "lr_coupling",
    "profile",
    "objective",
    "start_batch_size",
    "seed",
)
"""What tells the runs of a benchmark apart."""


def cell_key(row: Row) -> tuple[Any, ...]:
    """Return what tells a run from the others of its benchmark."""
    return tuple(row[name] for name in CELL_FIELDS)


def sort_key(row: Row) -> tuple[Any, ...]:
    """Return the order of results: task, coupling, profile, start, seed, then policy."""
    return (
        row["task"],
        row["lr_coupling"],
        row["profile"],
        row["start_batch_size"],
        row["seed"],
        row["policy"],
    )


def live_row(
    group: Group,
    policy: str,
    clock: CostClock,
    objective: str,
    result: RunResult,
    reference: Reference,
    default_batch_size: int,
) -> Row:
    """Return the result of a real run.

    A run that does not reach its target has the ratio `UNREACHED_RATIO`, as has one whose ratio
    would be larger. `default_cost` and `start_cost` are capped at that multiple of the reference.
    """
    return {
        "task": group.task,
        "policy": policy,
        "lr_coupling": group.coupling,
        "profile": clock.name,
        "objective": objective,
        "start_batch_size": result.start_batch_size,
        "seed": group.seed,
        "reached": result.reached,
        "cost": result.cost,
        "reference_cost": reference.cost,
        "reference_batch_size": reference.batch_size,
        "default_cost": reference.cost_of(default_batch_size),
        "ratio": run_ratio(result, reference.cost),
        "steps": result.steps,
        "samples": result.samples,
        "final_val_loss": result.final_val_loss if math.isfinite(result.final_val_loss) else None,
        "batch_size_min": result.batch_size_min,
        "batch_size_max": result.batch_size_max,
        "wall_seconds": result.wall_seconds if clock.profile is None else 0.0,
        "start_cost": reference.cost_of(result.start_batch_size),
        "default_batch_size": default_batch_size,
        "reference_reached": reference.reached,
        "diverged": result.diverged,
        "decisions": result.decisions,
        "changes": sum(one[1] != other[1] for one, other in pairwise(result.trajectory)),
    }


def run_ratio(result: RunResult, reference_cost: float) -> float:
    """Return a run's cost over the reference's: `UNREACHED_RATIO` at most, and if unreached."""
    return min(result.cost / reference_cost, UNREACHED_RATIO) if result.reached else UNREACHED_RATIO


def finished_cells(path: Path) -> set[tuple[Any, ...]]:
    """Return the cells that a file of results holds; none where there is no file."""
    return set(_by_cell(path)) if path.exists() else set()


def read_results(folder: Path) -> list[Row]:
    """Return the results in a folder, complete or not, each cell once, sorted.

    Raises:
        ConfigurationError: There are none, or a line is damaged.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} holds no results.jsonl. Name a folder that `rlbatch bench --out` wrote."
        )
    return sorted(_by_cell(path).values(), key=sort_key)


def _by_cell(path: Path) -> dict[tuple[Any, ...], Row]:
    rows: dict[tuple[Any, ...], Row] = {}
    for number, row in enumerate(read_lines(path), start=1):
        try:
            rows[cell_key(row)] = row
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path}, line {number} is no result of a benchmark ({type(error).__name__}: "
                f"{error}). Remove that line to go on, or name another folder."
            ) from error
    return rows


def sort_file(path: Path) -> None:
    """Rewrite a complete file of results in order, each cell once."""
    rows = read_results(path.parent)
    text = "".join(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n" for row in rows)
    if text != path.read_text(encoding="utf-8"):
        write_atomically(path, text)
