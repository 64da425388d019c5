"""What could be won over the best fixed batch size by somebody who knows everything.

    python scripts/measure_room.py --simulated 2000
    python scripts/measure_room.py --curves DIR [--runs 60]
    python scripts/measure_room.py --curves DIR --stretches

A schedule goes from one multiple of the best fixed size to another as the validation loss
falls to the target. All pairs of a grid are run on every task, from the right size on, without
measuring anything; the best pair of a task is chosen in one half of the runs and counted in the
other. So this leaves out what looking, measuring and arriving cost, and is a bound that no policy
can be expected to meet - though not a strict one, since other schedules than these exist. Beside
it stands the same for the best fixed size itself.

With --stretches nothing is run: the way to the target is divided into six stretches of the loss,
and each is given the fixed run that passed it at the least cost. No schedule can be that good: it
has the luck of every stretch, and a switch costs nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.simulated import POOL_SEED, simulate
from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.curves import COUPLINGS, CurveTable
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.profiles import CostWeights, resolve_profile
from rlbatch.envs.settings import EpisodeSetting, SettingSampler
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Array, Signals

SCHEDULES = list(product((-2.0, -1.0, 0.0, 1.0), (-1.0, 0.0, 1.0, 2.0)))
FIXED = SCHEDULES.index((0.0, 0.0))
REPEATS = 6
PROFILES = ("cpu", "accelerator-512", "accelerator-4096")
FIRST_SEED = 1_000_000


def main() -> None:
    """Print the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=int, help="number of simulated tasks")
    parser.add_argument("--curves", type=Path, help="folder made by rlbatch curves")
    parser.add_argument("--stretches", action="store_true", help="bound by the curves alone")
    parser.add_argument("--runs", type=int, default=60, help="settings of real tasks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.simulated:
        report("simulated", simulated(arguments.simulated))
    if arguments.curves and arguments.stretches:
        bounds = np.array(stretches(arguments.curves))
        print(f"best size of every stretch: {np.exp(np.log(bounds).mean()):.3f} of the best size's")
    elif arguments.curves:
        one = partial(real, str(arguments.curves))
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.runs)
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
            report("real", np.array(pool.map(one, seeds, chunksize=1)))


def report(name: str, log: Array) -> None:
    """Print the means of log ratios, shape (tasks, schedules, runs)."""
    half = log.shape[2] // 2
    chosen = log[:, :, :half].mean(2).argmin(1)
    counted = log[:, :, half:].mean(2)
    best = counted[np.arange(len(log)), chosen]
    print(
        f"{name}: {len(log)} tasks, best of {len(SCHEDULES)} schedules {np.exp(best.mean()):.3f} "
        f"(standard error {best.std() / len(best) ** 0.5:.3f}), best fixed size "
        f"{np.exp(counted[:, FIXED].mean()):.3f}, best schedule for all "
        f"{SCHEDULES[int(counted.mean(0).argmin())]}"
    )


class Schedule:
    """A policy that knows each task's best fixed size."""

    needs_gradient_noise = False

    def __init__(self, best: Array | float, first: float, last: float) -> None:
        """Go from `best * 2**first` to `best * 2**last`."""
        self.best, self.first, self.last = best, first, last

    def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """The validation losses at first and of late."""
        return np.full(shape, np.nan), np.full(shape, np.nan)

    def decide(
        self, observation: Observation, signals: Signals, state: tuple[Array, Array]
    ) -> tuple[Decision, tuple[Array, Array]]:
        """Go to the size that belongs to the progress."""
        begun, latest = state
        latest = np.where(np.isfinite(signals.val_loss), signals.val_loss, latest)
        # The simulator starts finished runs over.
        afresh = np.isnan(begun) | (np.asarray(signals.total_steps) <= np.asarray(signals.steps))
        begun = np.where(afresh, latest, begun)
        target = np.asarray(signals.context.target_loss)
        with np.errstate(divide="ignore", invalid="ignore"):
            progress = np.clip(np.log(begun / latest) / np.log(begun / target), 0.0, 1.0)
        exponent = self.first + (self.last - self.first) * np.nan_to_num(progress)
        low, high = signals.context.min_batch_size, signals.context.max_batch_size
        aim = np.clip(self.best * 2.0**exponent, low, high)
        return Decision(np.log2(aim) - np.log2(signals.batch_size)), (begun, latest)


def simulated(count: int) -> Array:
    """Run every schedule on every task of an unseen pool, two times."""
    pool = make_pool(count, POOL_SEED)
    best = 2.0 ** np.argmin(pool.fixed_cost, axis=1)
    log = np.empty((count, len(SCHEDULES), 2))
    for i, (first, last) in enumerate(SCHEDULES):
        tasks = replace(pool.tasks, start_batch_size=_start(pool, best, first))
        for k in range(2):
            found = simulate(replace(pool, tasks=tasks), Schedule(best, first, last), noise_seed=k)
            log[:, i, k] = _log(found["ratio"], found["reached"])
    return log


def _start(pool: TaskPool, best: Array, first: float) -> Array:
    tasks = pool.tasks
    return np.round(np.clip(best * 2.0**first, tasks.min_batch_size, tasks.max_batch_size))


def real(folder: str, seed: int) -> Array:
    """Run every schedule on one setting, `REPEATS` times."""
    setting = SettingSampler(Path(folder), SMALL_TASKS)(np.random.default_rng(seed))
    log = np.empty((len(SCHEDULES), REPEATS))
    for i, (first, last) in enumerate(SCHEDULES):
        for k in range(REPEATS):
            log[i, k] = _run(replace(setting, seed=REPEATS * seed + k), first, last)
    return log


def stretches(folder: Path) -> list[float]:
    """Return the bound over the best fixed cost, of each task, coupling and profile."""
    bounds: list[float] = []
    for name in SMALL_TASKS:
        table, task = CurveTable.load(folder / f"{name}.npz"), resolve_task(name)
        start = float(np.nanmax(table.val_loss[table.row(0, 0), :, 0]))
        levels = np.geomspace(start, task.target, 7)[1:]
        for coupling, profile in product(COUPLINGS, PROFILES):
            conditions = 0, coupling, resolve_profile(profile), CostWeights(), task.batch_size
            costs = [table.costs(float(level), *conditions) for level in levels]
            parts = np.array([[at[size] for at in costs] for size in costs[0]])
            with np.errstate(invalid="ignore"):
                spent = np.diff(parts, axis=1, prepend=0.0)
            spent[~np.isfinite(spent)] = np.inf  # behind a level that was not reached
            if np.isfinite(best := parts[:, -1].min()):
                bounds.append(float(spent.min(axis=0).sum() / best))
    return bounds


def _run(setting: EpisodeSetting, first: float, last: float) -> float:
    best = min(setting.fixed_costs, key=lambda size: setting.fixed_costs[size])
    task = resolve_task(setting.task)
    largest = task.max_batch_size or len(task.train_set)  # pyright: ignore[reportArgumentType]
    start = int(np.clip(round(best * 2.0**first), 1, largest))
    episode = LiveEpisode(replace(setting, start_batch_size=start, noise_rate=0.0))
    policy = Schedule(best, first, last)
    state, signals = policy.initial_state(), episode.first
    while not episode.run.finished:
        decision, state = policy.decide(np.empty(0, np.float32), signals, state)
        signals = episode.step(float(np.asarray(decision.log2_change))).signals
    return float(_log(episode.ratio, episode.run.reached))


def _log(ratio: Array | float, reached: Array | bool) -> Array:
    return np.log(np.where(reached, np.minimum(ratio, UNREACHED_RATIO), UNREACHED_RATIO))


if __name__ == "__main__":
    main()
