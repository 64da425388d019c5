"""The test of a training: runs with seeds that nothing was learned from or chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.rows import Row
from rlbatch.agents.evaluate.run import start_size
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.agents.evaluate.summary import Mean, geometric_mean
from rlbatch.agents.own_tasks.fixed_costs import cached_task
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.validation import Candidate


@dataclass(frozen=True)
class Score:
    """What a policy came to.

    Attributes:
        policy: Its name in tables.
        task: Of which task; None for all.
        by_start: Geometric mean of the ratios from each start, in the plan's order.
        all: Over all starts, with its interval.
        reached: Share of runs that reached the target.
        kept: It is the policy that was kept.
    """

    policy: str
    task: str | None
    by_start: tuple[float, ...]
    all: Mean
    reached: float
    kept: bool


def evaluate(
    plan: Plan,
    candidates: Sequence[Candidate],
    seeds: int,
    out: Path,
    *,
    jobs: int,
    references: Path,
    on_progress: Callable[[int, int], None],
) -> list[Row]:
    """Run candidates on the first seeds, and return the rows of the benchmark."""
    settings = BenchSettings(
        tasks=plan.tasks,
        policies=tuple(dict.fromkeys(candidate.policy for candidate in candidates)),
        couplings=(plan.coupling,),
        profiles=(plan.profile,),
        starts=plan.starts,
        seeds=seeds,
        narrow=True,
    )
    return run_bench(settings, out, jobs=jobs, references=references, on_progress=on_progress)


def scores(
    plan: Plan, rows: Sequence[Row], candidates: Sequence[Candidate], kept: str
) -> list[Score]:
    """Return the scores of candidates on each task, if there are several, and on all.

    Args:
        plan: Of the training.
        rows: Of the evaluation.
        candidates: In the order of the tables.
        kept: The policy that was kept.
    """
    parts: list[str | None] = [None] if len(plan.tasks) == 1 else [*plan.tasks, None]
    return [_score(plan, rows, candidate, task, kept) for task in parts for candidate in candidates]


def _score(
    plan: Plan, rows: Sequence[Row], candidate: Candidate, task: str | None, kept: str
) -> Score:
    own = [row for row in rows if row["policy"] == candidate.policy and task in (None, row["task"])]

    def mean(of: Sequence[Row]) -> Mean:
        logs = np.log([row["ratio"] for row in of])
        return geometric_mean(logs, [(row["task"], row["seed"]) for row in of])

    def begins_at(row: Row, start: float) -> bool:
        return row["start_batch_size"] == start_size(cached_task(row["task"]), start)

    return Score(
        policy=candidate.name,
        task=task,
        by_start=tuple(
            mean([row for row in own if begins_at(row, start)]).value for start in plan.starts
        ),
        all=mean(own),
        reached=float(np.mean([row["reached"] for row in own])),
        kept=candidate.policy == kept,
    )


def as_json(found: Sequence[Score]) -> list[dict[str, Any]]:
    """Return the scores as JSON-compatible values."""
    return [{**asdict(score), "by_start": list(score.by_start)} for score in found]
