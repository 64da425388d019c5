"""Compare policies in runs of so many epochs, without a target: final loss and time.

    python scripts/measure_epochs.py [--policy noise-scale:theta=8 grow:0.5x2,0.75x4] [--length 3]

Each task trains for as many samples as its default batch size takes to its target, or a multiple
of it, the batch size never below the task's, which is where it starts; what a step costs has to be
learned from the run. Prints for every device profile, over tasks, couplings and seeds, the
geometric mean of the time and of the final validation loss, each over those of the constant batch
size, and how often the loss is worse. `grow:0.5x2,0.75x4` is a schedule by hand: twice the size
after half of the samples, four times after three quarters.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from itertools import product

import numpy as np
from evaluate_settings import geometric_mean  # beside this file

from rlbatch.control.build import WITHOUT_PLAN
from rlbatch.control.engine import DecisionEngine
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.perceptron import fastest_backend
from rlbatch.envs.planned_episode import PlannedEpisode, PlannedSetting
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.policy.tools import decision
from rlbatch.signals.record import Coupling, Signals

TASKS = (
    *("digits-mlp", "digits-mlp-sgd", "tabular-regression", "tabular-regression-sgd"),
    *("tabular-classification", "tabular-classification-sgd"),
    *("teacher-student", "teacher-student-sgd"),
)
PROFILES = ("cpu", "accelerator-512", "accelerator-4096")
COUPLINGS = (Coupling.NONE, Coupling.SQRT, Coupling.LINEAR)
WORSE = 1.02  # a final loss that counts as worse


def main() -> None:
    """Print one line a policy and profile, and one a policy and coupling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", nargs="+", default=[WITHOUT_PLAN, "saving-ramp", "epochs"])
    parser.add_argument("--task", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--length", type=float, default=1.0, help="times the samples to the target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    tasks: list[str] = list(arguments.task)
    settings = list(product(tasks, range(arguments.seeds), COUPLINGS, PROFILES))
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        for policy in arguments.policy:
            one = partial(compare, policy, arguments.length)
            found = np.array(pool.map(one, settings, chunksize=4))
            for place, names in ((3, PROFILES), (2, COUPLINGS)):
                for name in names:
                    rows = found[[setting[place] == name for setting in settings]]
                    print(f"{policy} {name}: {summary(rows)}", flush=True)


def summary(rows: np.ndarray) -> str:
    """Return what a line says of ratios of (time, loss)."""
    time, loss = rows.T
    return (
        f"time {geometric_mean(time):.3f}  loss {geometric_mean(loss):.3f}  "
        f"median {np.median(loss):.3f}  worst {loss.max():.2f}  worse {np.mean(loss > WORSE):.0%}"
    )


def compare(
    policy: str, length: float, setting: tuple[str, int, Coupling, str]
) -> tuple[float, float]:
    """Return the ratios of time and of final loss to those of the constant batch size."""
    name, seed, coupling, profile = setting
    engine = DecisionEngine(_policy(policy))
    planned = PlannedSetting(
        name,
        seed,
        coupling,
        resolve_profile(profile),
        planned_samples=round(length * _samples_to_target(name, seed)),
        curve_known=False,
        noise_rate=engine.noise_rate,
    )
    episode = PlannedEpisode(planned)
    run, signals = episode.run, episode.first
    while not run.finished:
        size = engine.decide(signals, run.batch_size).batch_size
        signals = episode.step(float(np.log2(size / run.batch_size))).signals
    return run.cost / episode.reference_cost, episode.loss_ratio


class Growth:
    """A schedule of multiples of the task's batch size, by the share of the samples."""

    needs_gradient_noise = False

    def __init__(self, text: str) -> None:
        """Read pairs such as `0.5x2`."""
        pairs = [pair.split("x") for pair in text.split(",")]
        self._multiples = [(float(share), float(multiple)) for share, multiple in pairs]

    def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[()]:
        """Nothing is remembered."""
        del shape
        return ()

    def decide(
        self, observation: Observation, signals: Signals, state: tuple[()]
    ) -> tuple[Decision, tuple[()]]:
        """Go to the multiple in force."""
        del observation
        spent = float(signals.total_samples) / float(signals.context.planned_samples)
        passed = [multiple for share, multiple in self._multiples if spent >= share]
        aim = float(signals.context.base_batch_size) * (passed[-1] if passed else 1.0)
        return decision(np.log2(aim / float(signals.batch_size)), "schedule"), state


def _policy(name: str) -> Policy:
    return Growth(name.removeprefix("grow:")) if name.startswith("grow:") else resolve_policy(name)


def _samples_to_target(name: str, seed: int) -> float:
    task = resolve_task(name)
    curve = fixed_run_curve(
        task,
        task.batch_size,
        seed=seed,
        coupling=Coupling.NONE,
        target_loss=task.target,
        max_steps=20_000,
        backend=fastest_backend,
    )
    return float(curve.samples[-1])


if __name__ == "__main__":
    main()
