"""Record what a policy sees in simulated and in real runs, for scripts that compare the two.

    python scripts/record_observations.py simulated small field --out out/observations

Writes one `<domain>.npz` each: `simulated` (the simulator's tasks of training), `small` (the
built-in tasks of a few thousand samples), `budget` (these with a budget, in all kinds of cost),
`planned` (in runs of so many epochs), `field` (the development half of the field suite) and
`field-planned`. Runs alternate between the policy's decisions and random ones. The locked half of
the field suite is never run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.control.engine import EngineConfig
from rlbatch.envs.objectives import Objective
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.profiles import CostWeights, DeviceProfile, resolve_profile, step_cost
from rlbatch.envs.setting_draws import draw_profile
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.task import Task, resolve_task
from rlbatch.envs.tasks.field import field_job, selected
from rlbatch.policy.base import Decision, Observation, Policy, noise_rate_of
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling, Signals

COUPLINGS = tuple(Coupling)
FIELD_PROFILES = ("cpu", "accelerator-512", "accelerator-4096")
STARTS = (0.125, 1.0, 8.0)
_SIMULATED_TASKS, _SIMULATED_CHUNKS = 2_000, 60
_MOST_STEPS = 1_600  # of a real run: a random walk would else stay at small sizes for minutes


@dataclass
class Recorder:
    """A policy that notes what it is shown; decisions are the inner policy's.

    Attributes:
        policy: Decides.
        noise_rate: How densely the gradient noise is measured, whoever decides.
        seen: Observation and three numbers of each chunk: data set size, batch size, samples done.
    """

    policy: Policy
    noise_rate: float
    seen: list[tuple[Observation, tuple[float, ...]]] = field(default_factory=list[Any])

    needs_gradient_noise = True

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the inner policy's."""
        return self.policy.initial_state(shape)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Note what is seen, and return the inner decision."""
        size, samples = float(signals.batch_size), float(signals.total_samples)
        self.seen.append((observation.copy(), (float(signals.context.dataset_size), size, samples)))
        return self.policy.decide(observation, signals, state)


Rows = list[tuple[int, Observation, tuple[float, ...]]]


def main() -> None:
    """Write the files of the domains that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="+", choices=tuple(_DOMAINS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", default="default")
    parser.add_argument("--runs", type=int, default=2, help="of each real task")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for domain in arguments.domains:
        rows = _DOMAINS[domain](arguments.policy, arguments.runs, arguments.seed)
        path = arguments.out / f"{domain}.npz"
        save(path, rows)
        print(f"{path}: {len(rows)} decisions of {len({row[0] for row in rows})} runs", flush=True)


def save(path: Path, rows: Rows) -> None:
    """Write rows of (run, observation, numbers)."""
    runs, seen, numbers = zip(*rows, strict=True)
    np.savez_compressed(
        path, run=np.array(runs), observation=np.stack(seen), numbers=np.array(numbers)
    )


def simulated(policy: str, runs: int, seed: int) -> Rows:
    """Return what is seen in the simulator; half of the runs are decided at random."""
    del runs
    pool, count = make_pool(_SIMULATED_TASKS, seed + 100), _SIMULATED_TASKS
    learned, walk = Bounded(resolve_policy(policy)), resolve_policy("random")
    rng = np.random.default_rng(seed)
    episodes = QuadraticEpisodes(pool, count, rng, noise_rate=noise_rate_of(learned))
    episodes.begin(np.arange(count), np.arange(count))
    states = learned.initial_state((count,)), walk.initial_state((count,))
    open_, change, rows = np.ones(count, dtype=bool), None, Rows()
    for _ in range(_SIMULATED_CHUNKS):
        moved, signals = episodes.step(change), episodes.signals
        open_ &= ~moved.ended
        if (ended := np.flatnonzero(moved.ended)).size:  # goes on unwatched
            episodes.begin(ended, ended)
        if signals is None:
            continue
        numbers = np.stack(
            np.broadcast_arrays(
                signals.context.dataset_size, signals.batch_size, signals.total_samples
            ),
            axis=-1,
        )
        for run in np.flatnonzero(open_):
            rows.append((int(run), moved.observation[run].copy(), tuple(numbers[run])))
        first, one = learned.decide(moved.observation, signals, states[0])
        second, other = walk.decide(moved.observation, signals, states[1])
        states = one, other
        is_even = np.arange(count) % 2 == 0
        change = np.where(is_even, first.log2_change, second.log2_change)
    return rows


def in_small_tasks(kind: str, policy: str, runs: int, seed: int) -> Rows:
    """Return what is seen in the small tasks under an objective: target, budget or epochs."""
    rng, rows = np.random.default_rng([seed, 1]), Rows()
    for number, name in enumerate(np.repeat(SMALL_TASKS, runs)):
        task = resolve_task(str(name))
        profile, weights = draw_profile(rng), CostWeights()
        if rng.random() < 0.1:
            weights = CostWeights(seconds=0.0, samples=1.0)
        elif kind == "budget":
            idle, busy = rng.uniform(10.0, 100.0), rng.uniform(20.0, 300.0)
            profile = replace(profile, idle_watts=idle, busy_watts=busy)
            weights = CostWeights(*rng.dirichlet((0.5, 0.5, 0.5)))
        rows += record(
            number,
            task,
            policy,
            seed=seed + number,
            coupling=COUPLINGS[int(rng.integers(len(COUPLINGS)))],
            profile=profile,
            objective=_drawn_objective(kind, task, profile, weights, rng),
            start_factor=1.0 if kind == "epochs" else 2.0 ** int(rng.integers(-4, 5)),
            min_batch_size=task.batch_size if kind == "epochs" else None,
            curve_known=bool(rng.random() < 0.5),
        )
    return rows


def _drawn_objective(
    kind: str, task: Task, profile: DeviceProfile, weights: CostWeights, rng: np.random.Generator
) -> Objective:
    size: int = len(task.train_set)  # type: ignore[arg-type]
    samples = size * 2.0 ** rng.uniform(0.0, 4.0)
    if kind == "epochs":
        return Objective(planned_samples=samples, weights=weights)
    if kind == "budget":
        steps = samples / task.batch_size
        cost = float(step_cost(profile, weights, task.batch_size, task.batch_size))
        return Objective(budget=steps * cost, weights=weights)
    target = task.target * float(np.exp(rng.uniform(np.log(0.97), np.log(1.5))))
    return Objective(target_loss=target, weights=weights)


def in_field(kind: str, policy: str, runs: int, seed: int) -> Rows:
    """Return what is seen in the development half of the field suite: target or epochs."""
    rows = Rows()
    for place, name in enumerate(selected("field:dev")):
        task = resolve_task(name)
        steps = field_job(name).planned_steps()
        samples = float(steps * task.batch_size)
        planned = kind == "epochs"
        for run in range(runs):
            number = place * runs + run
            rows += record(
                number,
                task,
                policy,
                seed=seed + number,
                coupling=Coupling.SQRT,
                profile=resolve_profile(FIELD_PROFILES[number % 3]),
                objective=Objective(planned_samples=samples)
                if planned
                else Objective(target_loss=task.target),
                start_factor=1.0 if planned else STARTS[(number // 2) % 3],
                min_batch_size=task.batch_size if planned else None,
                curve_known=number % 4 < 2,
                planned_steps=steps,
            )
            print(f"  {name} run {run}: {len(rows)} decisions so far", flush=True)
    return rows


def record(
    number: int,
    task: Task,
    policy: str,
    *,
    profile: DeviceProfile | None,
    **conditions: Any,
) -> Rows:
    """Return what a policy sees in one run of a real task; every second run is random."""
    named = resolve_policy(policy)
    decides = named if number % 2 == 0 else resolve_policy(f"random:seed={number}")
    recorder = Recorder(decides, noise_rate_of(named))
    controlled_run(
        task,
        recorder,
        profile=profile,
        max_steps=_MOST_STEPS,
        engine=EngineConfig(),
        backend=fastest_backend,
        **conditions,
    )
    return [(number, seen, numbers) for seen, numbers in recorder.seen]


_DOMAINS: dict[str, Callable[[str, int, int], Rows]] = {
    "simulated": simulated,
    "small": partial(in_small_tasks, "target"),
    "field": partial(in_field, "target"),
    "field-planned": partial(in_field, "epochs"),
    "budget": partial(in_small_tasks, "budget"),
    "planned": partial(in_small_tasks, "epochs"),
}

if __name__ == "__main__":
    main()
