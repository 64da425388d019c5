"""Train without a family of tasks, to see what the controller does on a family it never met.

    python scripts/leave_one_out.py --family digits --curves DIR --start-from CHECKPOINT --out DIR

Begins with a policy of simulated runs only (`checkpoint.zip` in the folder of the default recipe
or of `rlbatch train --recipe simulated`), and goes on as one member of the default recipe does,
without the real runs of this family. Random tasks made from the family's data, or in its way, are
left out too. `rlbatch bench --task ... --policy DIR/policy.safetensors` with the
tasks that it prints tells what came out.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from make_default_policy import show  # beside this file

from rlbatch.agents.ppo import train
from rlbatch.agents.recipes import RECIPES, Recipe
from rlbatch.envs.tasks.random_job import RANDOM, TRANSFORMER
from rlbatch.envs.tasks.random_perceptron import kind_of_data

FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digits": (("digits-mlp", "digits-mlp-sgd"), ("images",)),
    "tabular": (
        (
            "tabular-regression",
            "tabular-regression-sgd",
            "tabular-classification",
            "tabular-classification-sgd",
        ),
        ("surface",),
    ),
    "teacher-student": (
        ("teacher-student", "teacher-student-sgd"),
        ("regression", "taught_classes"),
    ),
    "text": (
        ("char-lm", "translation", "language-id", TRANSFORMER),
        ("text", "documents"),
    ),
}
"""Built-in tasks of a family, and the kinds of random ones that are like them."""


def main() -> None:
    """Train one policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timesteps", type=int, default=RECIPES["default"].stages[-1].timesteps)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    left_out = {task for family in arguments.family for task in FAMILIES[family][0]}
    kinds = {kind for family in arguments.family for kind in FAMILIES[family][1]}
    curves = arguments.out / "curves"
    link_curves(arguments.curves, curves, left_out, kinds)
    recipe = recipe_without(arguments.family, left_out, arguments.timesteps)
    policy = train(
        recipe,
        arguments.out,
        resume=arguments.resume,
        curves=curves,
        start_from=arguments.start_from,
        report=show,
    )
    print(f"made {policy}; it has not seen {', '.join(sorted(left_out))}")


def recipe_without(families: list[str], left_out: set[str], timesteps: int) -> Recipe:
    """The last stage of the default recipe for one member, so long, without these tasks."""
    default = RECIPES["default"]
    return replace(
        default,
        name=f"without {' and '.join(families)}",
        stages=(replace(default.stages[-1], timesteps=timesteps),),
        members=1,
        tasks=tuple(task for task in default.tasks if task not in left_out),
    )


def link_curves(source: Path, folder: Path, left_out: set[str], kinds: set[str]) -> None:
    """Fill a folder with links to the tables that may be trained on."""
    folder.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        number = path.stem.removeprefix(f"{RANDOM}-")  # of a perceptron; no number else
        seen = path.stem in left_out or (number.isdigit() and kind_of_data(int(number)) in kinds)
        if not seen and not (folder / path.name).exists():
            os.symlink(path.resolve(), folder / path.name)


if __name__ == "__main__":
    main()
