"""What each part of the controller is worth: short simulated trainings with one change each.

    python scripts/ablate.py --out DIR [--timesteps 1500000] [--curves DIR] [--only full no-noise]

Every training has the same tasks and the same number of steps. Its policy is tried on 2,000 unseen
simulated tasks and, with --curves, on 160 random settings of the small real tasks, which these
trainings have not seen either. A training that is there is not repeated.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from evaluate_settings import FIRST_SEED, geometric_mean, run_one  # beside this file

from rlbatch.agents.evaluate.simulated import POOL_SEED, simulated_rows
from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import RECIPES, SMALL_TASKS, Recipe
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.simulator.pool import TaskPool, make_pool
from rlbatch.envs.threads import use_one_thread
from rlbatch.files import replacing
from rlbatch.observation import GROUPS

TASKS, SETTINGS = 2_000, 160
FULL = RECIPES["simulated"]
CHANGES: dict[str, Recipe] = {
    "full": FULL,
    **{f"no-{group}": replace(FULL, hidden=(group,)) for group in GROUPS},
    "no-memory": replace(
        FULL, hidden=("trend", "progress", "history", "validation", "size_statistics")
    ),
    "blind-critic": replace(FULL, privileged_critic=False),
    "layers-32": replace(FULL, policy_layers=(32, 32)),
    "layers-96": replace(FULL, policy_layers=(96, 96)),
    "noise-0": replace(FULL, noise_rate=0.0),
    "noise-0.3": replace(FULL, noise_rate=0.3),
    "noise-0.6": replace(FULL, noise_rate=0.6),
    "steps-of-two": replace(FULL, actions=(-1.0, 0.0, 1.0)),
    "other-seed": replace(FULL, seed=1),
}


def main() -> None:
    """Print a line a change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timesteps", type=int, default=1_500_000)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(CHANGES), default=tuple(CHANGES))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    make_pools(arguments.out)
    one = partial(line_of, arguments.out, arguments.timesteps, arguments.curves)
    with get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
        for line in pool.imap(one, arguments.only):
            print(line, flush=True)


def make_pools(out: Path) -> None:
    """Make the tasks of all trainings and those of the trials, once."""
    for name, count, seed in (
        ("training", FULL.pool_size, FULL.seed + 100),
        ("trial", TASKS, POOL_SEED),
    ):
        if not (path := out / f"{name}.npz").exists():
            with replacing(path) as temporary:
                make_pool(count, seed).save(temporary)


def line_of(out: Path, timesteps: int, curves: Path | None, name: str) -> str:
    """Train one variant, unless it is there, and return what it scores."""
    recipe, folder = CHANGES[name], out / name
    recipe = replace(recipe, stages=(replace(recipe.stages[0], timesteps=timesteps),))
    policy = folder / "policy.safetensors"
    if not policy.exists():
        folder.mkdir(exist_ok=True)
        shutil.copyfile(out / "training.npz", folder / "pool.npz")
        policy = train(recipe, folder, resume=(folder / "progress.json").exists())
    rows = simulated_rows(TaskPool.load(out / "trial.npz"), str(policy), f"simulated:{TASKS}")
    line = f"{name:14} simulated {summary([row['ratio'] for row in rows])}"
    if curves is not None:
        seeds = range(FIRST_SEED, FIRST_SEED + SETTINGS)
        real = [run_one(str(curves), SMALL_TASKS, str(policy), seed) for seed in seeds]
        line += f"   real {summary([row['ratio'] for row in real])}"
    return line


def summary(ratios: Sequence[float]) -> str:
    """Return the geometric mean and how many did not reach their target."""
    values = np.asarray(ratios)
    unreached = float((values >= UNREACHED_RATIO).mean())
    return f"{geometric_mean(values):.3f} ({unreached:.1%} unreached)"


if __name__ == "__main__":
    main()
