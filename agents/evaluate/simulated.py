"""Policies on the vectorised simulator: thousands of tasks at once, none of them seen in training.

`simulated:N` stands for a pool of N tasks whose seed no training uses. Coupling, clock and start
are drawn with each task, so the benchmark's own have no effect on it; the `seed` of a result is the
task's position in the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.curve_store import append_lines
from rlbatch.agents.evaluate.rows import Row, finished_cells
from rlbatch.agents.evaluate.settings import BenchSettings, simulated_count
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.episodes import QuadraticEpisodes, Transition
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.policy.base import Policy, noise_rate_of
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.registry import resolve_policy

POOL_SEED = 982_451_653
"""Seed of the unseen tasks."""

_NOISE_SEED = 15_485_863
_PROFILE = "drawn"
_MAX_CHUNKS = 2_000
_NUMBERS = ("ratio", "steps", "samples", "val_loss", "decisions", "cost_ratio")


def run_missing(settings: BenchSettings, task: str, path: Path, update: Callable[[], None]) -> None:
    """Run the policies whose results on a pool are not complete, and append these.

    Args:
        settings: Of the benchmark.
        task: `simulated:N`.
        path: File of the results.
        update: Called after each policy.
    """
    done = finished_cells(path)
    count = simulated_count(task)
    missing = [
        policy
        for policy in settings.policies
        if sum(cell[0] == task and cell[1] == policy for cell in done) < count
    ]
    if not missing:
        return
    pool = make_pool(count, POOL_SEED)
    for policy in missing:
        append_lines(path, simulated_rows(pool, policy, task))
        update()


def simulated_rows(pool: TaskPool, policy: str, task: str) -> list[Row]:
    """Run a policy once on every task of a pool and return the results, in the pool's order.

    Args:
        pool: The tasks.
        policy: As `rlbatch.load_policy` takes it.
        task: Name of the pool in the results.
    """
    found = simulate(pool, Bounded(resolve_policy(policy)))
    tasks = pool.tasks
    default = np.minimum(pool.cost_of(tasks.base_batch_size), UNREACHED_RATIO * pool.reference_cost)
    start = np.minimum(pool.cost_of(tasks.start_batch_size), UNREACHED_RATIO * pool.reference_cost)
    best = 2 ** np.argmin(pool.fixed_cost, axis=1)
    rows: list[Row] = []
    for i in range(len(pool)):
        exponent = float(tasks.coupling_exponent[i])
        coupling = {0.0: "none", 0.5: "sqrt", 1.0: "linear"}[exponent]
        values = {name: array[i].item() for name, array in found.items()}
        row: Row = {
            "task": task,
            "policy": policy,
            "lr_coupling": "adascale" if tasks.adascale[i] > 0 else coupling,
            "profile": _PROFILE,
            "objective": "target",
            "start_batch_size": int(tasks.start_batch_size[i]),
            "seed": i,
            "reached": values["reached"],
            "cost": values["ratio"] * float(pool.reference_cost[i]),
            "reference_cost": float(pool.reference_cost[i]),
            "reference_batch_size": int(best[i]),
            "default_cost": float(default[i]),
            "ratio": values["ratio"],
            "steps": int(values["steps"]),
            "samples": int(values["samples"]),
            "final_val_loss": values["val_loss"],
            "batch_size_min": int(values["smallest"]),
            "batch_size_max": int(values["largest"]),
            "wall_seconds": 0.0,
            "start_cost": float(start[i]),
            "default_batch_size": int(tasks.base_batch_size[i]),
            "reference_reached": True,
            "diverged": bool(not values["reached"] and values["cost_ratio"] < UNREACHED_RATIO),
            "decisions": int(values["decisions"]),
        }
        rows.append(row)
    return rows


def simulate(
    pool: TaskPool, policy: Policy, *, noise_seed: int = _NOISE_SEED
) -> dict[str, np.ndarray]:
    """Run a policy on every task of a pool to its end.

    Args:
        pool: The tasks.
        policy: What decides.
        noise_seed: Of the measurements' and the steps' noise.

    Returns:
        Arrays with one entry a task: ratio, reached, steps, samples, val_loss, smallest, largest
        (batch sizes in force), decisions, and cost_ratio (what was spent over the reference cost).
    """
    count = len(pool)
    everything = np.arange(count)
    rng = np.random.default_rng(noise_seed)
    episodes = QuadraticEpisodes(pool, count, rng, noise_rate=noise_rate_of(policy))
    episodes.begin(everything, everything)
    found: dict[str, np.ndarray] = {name: np.zeros(count) for name in _NUMBERS}
    found["reached"] = np.zeros(count, dtype=bool)
    found["smallest"] = episodes.batch_size.copy()
    found["largest"] = episodes.batch_size.copy()
    open_ = np.ones(count, dtype=bool)
    state = policy.initial_state((count,))
    change = None
    for chunk in range(_MAX_CHUNKS):
        moved = episodes.step(change)
        now = open_ & moved.ended
        for name, values in _numbers(episodes, moved, chunk).items():
            found[name][now] = values[now]
        if episodes.signals is not None:
            sizes = np.asarray(episodes.signals.batch_size)
            found["smallest"][open_] = np.minimum(found["smallest"], sizes)[open_]
            found["largest"][open_] = np.maximum(found["largest"], sizes)[open_]
        open_ &= ~moved.ended
        if not open_.any():
            return found
        ended = np.flatnonzero(moved.ended)
        if len(ended):  # starts over, unwatched: so its numbers stay ordinary ones
            episodes.begin(ended, ended)
        if episodes.signals is None:
            continue
        decision, state = policy.decide(moved.observation, episodes.signals, state)
        change = np.broadcast_to(np.asarray(decision.log2_change, dtype=np.float64), (count,))
    found["ratio"][open_] = UNREACHED_RATIO
    found["cost_ratio"][open_] = UNREACHED_RATIO
    return found


def _numbers(episodes: QuadraticEpisodes, moved: Transition, chunk: int) -> dict[str, np.ndarray]:
    """Return what is kept of a run that ends with this chunk."""
    runs = episodes.runs
    return {
        "ratio": moved.ratio,
        "reached": moved.reached,
        "steps": runs.steps,
        "samples": runs.samples,
        "val_loss": runs.validation_loss(),
        "cost_ratio": runs.cost / episodes.pool.reference_cost,
        "decisions": np.full(len(episodes), chunk),
    }
