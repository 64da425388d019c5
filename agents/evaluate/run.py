"""One controlled run: a real training run whose batch size a policy decides, chunk by chunk."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.run_log import RunLog
from rlbatch.agents.rules.branches import Branches
from rlbatch.control.build import fallback_for
from rlbatch.control.config import AUTO
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.data.step_plan import round_batch_size
from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.live import LiveRun, Validation
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.task import Task, smallest_batch_size
from rlbatch.policy.base import Policy
from rlbatch.signals.record import Coupling

LONGEST_RUN = 1_000_000
"""Optimizer steps after which a run ends that nothing else ends."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        start_batch_size: Batch size of the first chunk.
        reached: The target was met within the limit; under `budget` and `epochs`, the run did not
            diverge.
        diverged: The weights were lost.
        cost: Spent in all, the decisions' own seconds included on the wall clock.
        steps: Optimizer steps, those of trials included.
        samples: Samples seen, those of trials included.
        final_val_loss: Of the last validation; NaN without any.
        batch_size_min: Smallest batch size in force.
        batch_size_max: Largest.
        decisions: How often the policy was asked.
        wall_seconds: From the first step to the end, validations included.
        decision_seconds: Of these, what encoding and deciding took.
        validations: Every validation.
        trajectory: (cost, batch size) at the start of each chunk.
    """

    start_batch_size: int
    reached: bool
    diverged: bool
    cost: float
    steps: int
    samples: int
    final_val_loss: float
    batch_size_min: int
    batch_size_max: int
    decisions: int
    wall_seconds: float
    decision_seconds: float
    validations: tuple[Validation, ...]
    trajectory: tuple[tuple[float, int], ...]


def largest_batch_size(task: Task) -> int:
    """Return the largest batch size that a run of a task may use."""
    size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
    return task.max_batch_size or size


def start_size(task: Task, factor: float) -> int:
    """Return the start batch size at a multiple of the task's own, within its limits."""
    return int(round_batch_size(task.batch_size * factor, 1, largest_batch_size(task)))


def controlled_run(  # noqa: PLR0913 - every argument is a condition of the run
    task: Task,
    policy: Policy,
    *,
    seed: int,
    coupling: Coupling,
    profile: DeviceProfile | None,
    objective: Objective,
    start_factor: float = 1.0,
    min_batch_size: int | None = None,
    cadence: Cadence | None = None,
    log_dir: str | Path | None = None,
    max_cost: float | None = None,
    max_steps: int = LONGEST_RUN,
    planned_steps: int | None = None,
    curve_known: bool = True,
    engine: EngineConfig | None = None,
    run_info: dict[str, object] | None = None,
    backend: BackendMaker = TorchBackend,
) -> RunResult:
    """Train a task under a policy and return what it came to.

    The first chunk runs at the start batch size; the policy is asked after every chunk. On the wall
    clock the seconds of encoding and deciding are part of the cost. The policy never sees
    `max_cost`: a limit that follows from the best fixed batch size would give that size away.

    Args:
        task: What is trained.
        policy: Decides; limits of the run are put around it.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        profile: Whose step costs count; None for the wall clock.
        objective: When the run ends, and what cost is.
        start_factor: First batch size relative to the task's, clipped to what is possible.
        min_batch_size: Smallest that may be asked for; None for `smallest_batch_size`.
        cadence: Spacing of decisions and validations.
        log_dir: Write an episode log there.
        max_cost: Give up once the run has cost more (checked between chunks); a target met beyond
            it does not count as reached.
        max_steps: Give up after this many optimizer steps.
        planned_steps: Length of the task's schedule, if it has one.
        curve_known: Tell the policy a profile's costs at every size.
        engine: Wrappers around the policy; None for the fallback that a controller has.
        run_info: Further entries of the log's `run.json`.
        backend: Makes the weights, as for `LiveRun`.
    """
    first = start_size(task, start_factor)
    wrappers = engine or EngineConfig(fallback=fallback_for(policy))
    conditions = RunConditions(
        seed=seed,
        coupling=coupling,
        profile=profile,
        objective=objective,
        start_batch_size=first,
        min_batch_size=min_batch_size or smallest_batch_size(task, first),
        cadence=cadence or Cadence(),
        noise_rate=wrappers.noise_rate(policy),
        planned_steps=planned_steps,
        plan_known=_is_planned(task, objective),
        max_steps=max_steps,
        curve_known=curve_known,
    )
    run = LiveRun(task, conditions, backend=backend)
    decider = DecisionEngine(policy.on(run) if isinstance(policy, Branches) else policy, wrappers)
    with _log(log_dir, run, _head(policy, engine) | (run_info or {})) as log:
        return _drive(run, decider, max_cost, log)


def _is_planned(task: Task, objective: Objective) -> bool:
    """Whether a controller would be told the run's length: for a target, only by a schedule."""
    return task.scheduler is not None or objective.kind != "target"


def _head(policy: Policy, engine: EngineConfig | None) -> dict[str, object]:
    """Return what the log says of the policy and its wrappers, for a replay."""
    grid = getattr(policy, "action_grid", None)
    return {"action_grid": grid, "config": {"fallback": AUTO} if engine is None else {}}


def _log(
    folder: str | Path | None, run: LiveRun, head: dict[str, object]
) -> AbstractContextManager[RunLog | None]:
    return nullcontext() if folder is None else closing(RunLog(folder, run, head))


def _drive(
    run: LiveRun, decider: DecisionEngine, max_cost: float | None, log: RunLog | None
) -> RunResult:
    """Train to the end; on the wall clock the seconds of deciding are cost."""
    limit = math.inf if max_cost is None else max_cost
    charged = run.conditions.profile is None and run.objective.weights.seconds == 1.0
    trajectory: list[tuple[float, int]] = []
    decision_seconds, began = 0.0, time.perf_counter()
    size, decisions, released = run.batch_size, 0, False
    while True:
        trajectory.append((run.cost, size))
        signals = run.advance(size)
        if run.finished or run.cost > limit:
            break
        if run.released:
            if log is not None and not released:
                log.off(signals)
            size, released = run.task.batch_size, True
            continue
        asked, before = time.perf_counter(), run.cost
        decision = decider.decide(signals, run.batch_size)
        decision = decision.held() if run.held else decision
        seconds = time.perf_counter() - asked
        decisions, decision_seconds = decisions + 1, decision_seconds + seconds
        if charged:
            run.cost += seconds - (run.cost - before)  # trials have charged theirs
        if log is not None:
            log.decision(signals, decision)
        size = decision.batch_size
        if run.finished:  # the policy has spent what was left
            break
    if log is not None:
        log.end(signals)
    return _result(
        run,
        limit,
        trajectory,
        decisions=decisions,
        wall_seconds=time.perf_counter() - began,
        decision_seconds=decision_seconds,
    )


def _result(
    run: LiveRun, limit: float, trajectory: Sequence[tuple[float, int]], **counts: Any
) -> RunResult:
    sizes = [size for _, size in trajectory]
    aimless = run.objective.kind != "target"
    return RunResult(
        start_batch_size=sizes[0],
        reached=not run.diverged if aimless else run.reached and run.cost <= limit,
        diverged=run.diverged,
        cost=run.cost,
        steps=run.steps + run.tried_steps,
        samples=run.samples_seen + run.tried_samples,
        final_val_loss=run.val_loss,
        batch_size_min=min(sizes),
        batch_size_max=max(sizes),
        validations=tuple(run.validations),
        trajectory=tuple(trajectory),
        **counts,
    )
