"""The field suite as benchmarks: which tasks, clocks, starts and seeds a table is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlbatch.agents.evaluate.bench import REFERENCES, Progress, run_bench
from rlbatch.agents.evaluate.group import RESULTS_FILE
from rlbatch.agents.evaluate.rows import Row, sort_key
from rlbatch.agents.evaluate.settings import EPOCHS, TARGET, BenchSettings
from rlbatch.envs.tasks.field import LOCKED, PREFIX, field_job, selected
from rlbatch.files import write_atomically

STARTS = (0.125, 1.0, 8.0)
QUICK_SUITE = "field:quick"

TOLD = ("cpu", "accelerator-512", "accelerator-4096")
UNTOLD = tuple(f"{name}:untold" for name in TOLD)


@dataclass(frozen=True)
class SuitePart:
    """A benchmark of the suite, and the folder in which it goes."""

    name: str
    settings: BenchSettings


def suite_parts(
    suite: str,
    policies: Sequence[str],
    couplings: Sequence[str] = ("sqrt",),
    seeds: int | None = None,
) -> list[SuitePart]:
    """Return the benchmarks of a suite: all tasks to their targets, and each for its own length.

    Args:
        suite: `field`, `field:dev`, `field:locked` or `field:quick`.
        policies: What to compare.
        couplings: How the learning rate follows the batch size.
        seeds: Of every part; None for 2 (to a target) and 4 (for a length), and half as many in the
            quick suite.

    Raises:
        ConfigurationError: There is no such suite, or a setting is out of range.
    """
    names = selected(suite)
    quick = suite == QUICK_SUITE
    to_target = BenchSettings(
        tasks=names,
        policies=tuple(policies),
        couplings=tuple(couplings),
        profiles=(TOLD[0], UNTOLD[2]) if quick else (*TOLD, *UNTOLD),
        starts=STARTS,
        seeds=seeds or (1 if quick else 2),
        objective=TARGET,
    )
    parts = [
        SuitePart(
            f"epochs-{name.removeprefix(PREFIX)}",
            BenchSettings(
                tasks=(name,),
                policies=tuple(policies),
                couplings=tuple(couplings),
                profiles=UNTOLD if quick else (*UNTOLD, TOLD[1], TOLD[2]),
                seeds=seeds or (2 if quick else 4),
                objective=f"{EPOCHS}{field_job(name).epochs:g}",
            ),
        )
        for name in names
    ]
    return [*parts, SuitePart("target", to_target)]


def locked_among(tasks: Sequence[str]) -> list[str]:
    """Return the tasks that belong to the locked half of the field suite."""
    return [name for name in tasks if name.removeprefix(PREFIX) in LOCKED]


def run_suite(
    parts: Sequence[SuitePart],
    out: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    references: Path | None = None,
    on_part: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    on_fixed: Progress | None = None,
) -> list[Row]:
    """Run what is missing of a suite and return all of its results, sorted.

    Each part is a benchmark of its own in a folder below `out`, which has all results together.

    Args:
        parts: As `suite_parts`.
        out: Folder for the results.
        jobs: Processes.
        cluster: As for `run_bench`.
        references: Folder of the fixed curves; None takes one in `out`.
        on_part: Called with the name of each part before it is run.
        on_progress: As for `run_bench`, for each part.
        on_fixed: Likewise.
    """
    rows: list[Row] = []
    for part in parts:
        if on_part is not None:
            on_part(part.name)
        rows += run_bench(
            part.settings,
            out / part.name,
            jobs=jobs,
            cluster=cluster,
            references=out / REFERENCES if references is None else references,
            on_progress=on_progress,
            on_fixed=on_fixed,
        )
    rows.sort(key=lambda row: (row["objective"], *sort_key(row)))
    text = "".join(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n" for row in rows)
    write_atomically(out / RESULTS_FILE, text)
    return rows
