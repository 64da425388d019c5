"""Tune the constants of the published rules on random settings of the training tasks.

    python scripts/tune_rules.py --curves DIR [--runs 160] [--rule goodput] [--noise-rate 2.4]

The settings are those of `scripts/evaluate_settings.py`, with seeds of their own. Printed are every
constant's ratio to the best fixed size in hindsight, the paper's value among them, and the best one
of each rule. `--noise-rate` says how densely the gradient noise is measured (and paid for).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from pathlib import Path

from evaluate_settings import geometric_mean, run_one  # beside this file

from rlbatch.agents.recipes import SMALL_TASKS
from rlbatch.envs.threads import use_one_thread

FIRST_SEED = 3_000_000
GRID: dict[str, tuple[str, ...]] = {
    "goodput": ("", "hysteresis=0.2", "hysteresis=0.5", "hysteresis=1.0", "decay=0.99"),
    "noise-scale": ("", "theta=0.3", "theta=1.2", "theta=2.5", "theta=1.2,follow=true"),
    "simigrad": ("", "target=0.3", "target=0.7", "target=0.7,max_log2_change=2"),
    "norm-test": ("", "theta=0.3", "theta=0.5", "theta=2.0"),
    "cabs": ("", "scale=0.1", "scale=10", "scale=100"),
    "adadamp": ("", "lowest_loss=0.05"),
    "padadamp": ("", "rate=0.1", "rate=1.0", "rate=3.0", "rate=10.0", "rate=30.0"),
    "radadamp": ("", "rho=0.05", "rho=0.5,wait=20"),
    "geometric": ("", "every_epochs=1", "every_epochs=2", "factor=4.0"),
    "plateau": ("", "patience=3", "patience=30", "patience=3,factor=4.0"),
}


def main() -> None:
    """Print a line a constant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--rule", nargs="+", choices=tuple(GRID), default=tuple(GRID))
    parser.add_argument("--runs", type=int, default=160)
    parser.add_argument("--noise-rate", type=float, help="default: 0.6")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.runs)
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        for rule in arguments.rule:
            found: dict[str, float] = {}
            for constants in GRID[rule]:
                name = f"{rule}:{constants}" if constants else rule
                one = partial(run_one, str(arguments.curves), SMALL_TASKS, name)
                rows = pool.starmap(one, [(s, arguments.noise_rate) for s in seeds], chunksize=4)
                found[name] = geometric_mean([row["ratio"] for row in rows])
                print(f"{name:42} {found[name]:.3f}", flush=True)
            print(f"best of {rule}: {min(found, key=lambda name: found[name])}", flush=True)


if __name__ == "__main__":
    main()
