"""Make the shipped default policy.

    python scripts/make_default_policy.py --out DIR [--resume] [--install]

Computes the learning curves that are missing, trains by the recipe `default` (simulated runs, then
simulated and real ones), and with --install copies the policy into agents/pretrained/. A stopped
run goes on with --resume.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from rlbatch.agents.curves import RANDOM_TASKS, make_curves
from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import resolve_recipe

PRETRAINED = Path(__file__).resolve().parents[1] / "agents" / "pretrained" / "default.safetensors"


def main() -> None:
    """Run the whole recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--install", action="store_true", help="replace the shipped policy")
    arguments = parser.parse_args()
    recipe = resolve_recipe(arguments.recipe)
    curves = arguments.out / "curves"
    if recipe.has_real_runs:
        named = [name for name in recipe.tasks if name not in RANDOM_TASKS]
        numbered = {kind: RANDOM_TASKS[kind] for kind in recipe.tasks if kind in RANDOM_TASKS}
        make_curves(curves, named, numbered, jobs=os.cpu_count() or 1)
    training = arguments.out / "training"
    resume = arguments.resume and (training / "progress.json").exists()
    policy = train(recipe, training, resume=resume, curves=curves, report=show)
    if arguments.install:
        shutil.copyfile(policy, PRETRAINED)
        print(f"installed {PRETRAINED}")


def show(figures: dict[str, float]) -> None:
    """Print one line a rollout."""
    print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
