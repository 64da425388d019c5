"""One run that compares a policy, and what it came to."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlbatch.agents.evaluate.rows import run_ratio
from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts, own_task
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.envs.live import Validation as Seen
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling

Key = tuple[str, str, float, int]
KEY = "candidate", "task", "start", "seed"  # the last is a number within the rounds


class Work(NamedTuple):
    """All that a run needs, in any process.

    Attributes:
        plan: Of the training.
        policy: As `rlbatch.load_policy` takes it.
        content: Of the policy's file, where that may be out of reach.
        costs: Of the task's fixed sizes.
        identity: Of the task here.
        key: Which run it is.
        first_seed: Of the runs.
    """

    plan: Plan
    policy: str
    content: bytes | None
    costs: TaskCosts
    identity: str
    key: Key
    first_seed: int


class RunOutcome(NamedTuple):
    """What a run came to.

    Attributes:
        ratio: Cost over that of the best fixed size.
        smoothed: `smoothed_cost` over the same.
        reached: It met the target.
    """

    ratio: float
    smoothed: float
    reached: bool


def run(work: Work) -> tuple[RunOutcome, float]:
    """Return a run's outcome, and the seconds that it took here."""
    begun = time.monotonic()
    outcome = _outcome(work)
    return outcome, time.monotonic() - begun


def _outcome(work: Work) -> RunOutcome:
    plan, costs, (_, _, start, number) = work.plan, work.costs, work.key
    clock = plan.clock
    result = controlled_run(
        own_task(costs.name, work.identity),
        _policy(work.policy, work.content),
        seed=work.first_seed + number,
        coupling=Coupling(plan.coupling),
        profile=clock.profile,
        objective=Objective(costs.task.target, None, clock.weights),
        start_factor=start,
        max_cost=UNREACHED_RATIO * costs.reference,
        planned_steps=costs.planned,
        curve_known=clock.told,
        backend=fastest_backend,
    )
    ratio = run_ratio(result, costs.reference)
    if not result.reached:
        return RunOutcome(ratio, ratio, False)
    smoothed = smoothed_cost(result.validations, costs.task.target) / costs.reference
    return RunOutcome(ratio, smoothed, True)


def smoothed_cost(validations: Sequence[Seen], target: float) -> float:
    """Return the geometric mean of the costs at which a run met its target and some just above it.

    When a run meets one number is in part luck. What it costs to meet several that lie within 15%
    of the target, and within a tenth of the way from the first loss, varies less from seed to seed
    and ranks policies alike.

    Args:
        validations: Of a run that met its target.
        target: The target.
    """
    most = min(0.15 * target, 0.1 * max(validations[0].loss - target, 0.0))
    costs = [
        next(seen.cost for seen in validations if seen.loss <= target + share * most)
        for share in (0.0, 1 / 3, 2 / 3, 1.0)
    ]
    return float(np.exp(np.log(costs).mean()))


@functools.cache
def _policy(name: str, content: bytes | None) -> Policy:
    """Return a policy, from a file's content where the file itself is out of reach."""
    if content is None:
        return resolve_policy(name)
    with tempfile.TemporaryDirectory(prefix="rlbatch-") as folder:
        path = Path(folder) / "policy.safetensors"
        path.write_bytes(content)
        return resolve_policy(str(path))
