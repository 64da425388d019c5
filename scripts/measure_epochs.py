"""Compare policies in runs of so many epochs, without a target: final loss and time.

    python scripts/measure_epochs.py [--policy noise-scale:theta=8 ...] [--seeds 2]

Each task trains for as many samples as its default batch size takes to its target, the batch size
never below the task's. Prints, over tasks and seeds, the geometric mean of the final validation
loss over that of the constant batch size, the worst, and the mean ratio of time on three device
profiles.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from rlbatch.control.engine import DecisionEngine
from rlbatch.controller import WITHOUT_AIM
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.perceptron import fastest_trainee
from rlbatch.envs.profiles import CostWeights, resolve_profile
from rlbatch.envs.task import Task, resolve_task
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling

TASKS = (
    *("digits-mlp", "digits-mlp-sgd", "tabular-regression", "tabular-regression-sgd"),
    *("tabular-classification", "tabular-classification-sgd"),
    *("teacher-student", "teacher-student-sgd"),
)
PROFILES = ("cpu", "accelerator-512", "accelerator-4096")
COUPLINGS = (Coupling.NONE, Coupling.SQRT, Coupling.LINEAR)
WORSE = 1.02  # a final loss that counts as worse


def main() -> None:
    """Print one line a policy and coupling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", nargs="+", default=[WITHOUT_AIM, "default"])
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for policy in arguments.policy:
        for coupling in COUPLINGS:
            rows = [
                compare(resolve_task(name), policy, seed, coupling)
                for name in TASKS
                for seed in range(arguments.seeds)
            ]
            loss, *times = np.array(rows).T
            pairs = zip(PROFILES, times, strict=True)
            shown = "  ".join(f"{profile} {_mean(time):.2f}" for profile, time in pairs)
            print(
                f"{policy} {coupling.value}: loss {_mean(loss):.3f}  worst {loss.max():.2f}  "
                f"worse {np.mean(loss > WORSE):.0%}  time: {shown}",
                flush=True,
            )


def compare(task: Task, policy: str, seed: int, coupling: Coupling) -> tuple[float, ...]:
    """Return the ratio of the final losses, and of the times on each profile."""
    curve = fixed_run_curve(
        task,
        task.batch_size,
        seed=seed,
        coupling=coupling,
        target_loss=task.target,
        max_steps=20_000,
        trainee=fastest_trainee,
    )
    samples = float(curve.samples[-1])
    loss, sizes = _train(task, policy, seed, coupling, samples)
    constant, usual = _train(task, "fixed", seed, coupling, samples)
    times = [_seconds(name, sizes) / _seconds(name, usual) for name in PROFILES]
    return loss / constant, *times


def _train(
    task: Task, policy: str, seed: int, coupling: Coupling, samples: float
) -> tuple[float, list[tuple[int, int]]]:
    engine = DecisionEngine(resolve_policy(policy))
    run = LiveRun(
        task,
        seed=seed,
        coupling=coupling,
        profile=resolve_profile("cpu"),
        objective=Objective(None, samples, CostWeights(seconds=0.0, samples=1.0)),
        min_batch_size=task.batch_size,
        noise_rate=engine.noise_rate,
        cadence=Cadence(validation_growth=0.1),
        trainee=fastest_trainee,
    )
    size, sizes = task.batch_size, list[tuple[int, int]]()
    while True:
        before = run.steps
        signals = run.advance(size)
        sizes.append((size, run.steps - before))
        if run.finished:
            return run.val_loss, sizes
        size = engine.decide(signals, run.batch_size).batch_size


def _seconds(profile: str, sizes: list[tuple[int, int]]) -> float:
    clock = resolve_profile(profile)
    return sum(steps * float(clock.step_seconds(size)) for size, steps in sizes)


def _mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


if __name__ == "__main__":
    main()
