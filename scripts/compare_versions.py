"""What two or more versions of rlbatch cost the same trainings, in turns in one process.

    git worktree add /tmp/before SOME_COMMIT
    python scripts/compare_versions.py before=/tmp/before now=. [--models mlp cnn] [--rounds 25]

Each version is imported from its own tree, one after the other; their trainings live side by side
and take turns, so that whatever else the machine does disturbs all of them. Own time, as in
`rlbatch bench overhead`; a run is one of 1,000 steps.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_WORKLOADS = "rlbatch.agents.evaluate.overhead_workloads"
_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+", help="name=tree")
    parser.add_argument("--models", nargs="+", default=["mlp"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trees = dict(version.split("=", 1) for version in arguments.versions)
    print_head("version")
    for model in arguments.models:
        compare(trees, model, arguments.batch_size, arguments.rounds)


def compare(trees: dict[str, str], model: str, batch_size: int, rounds: int) -> None:
    """Print the lines of one model."""
    device, arms, share = torch.device("cpu"), dict[str, Any](), 0.0
    for name, tree in trees.items():
        overhead, workloads, policy = load(Path(tree).resolve())
        workload = workloads.Workload(model, batch_size, device)
        arms.setdefault("plain", workloads.plain(workload))
        configs = overhead.part_configs(policy)
        share = overhead.run_shares(policy, _STEPS)["decision"]
        for part in ("step", "decision"):
            arm = arms[f"{name}, {part}"] = workloads.controlled(workload, policy, configs[part])
            workloads.advance(arm, 6)  # with what is imported late, while it is this version's
    turns = importlib.import_module("rlbatch.agents.evaluate.overhead_turns")
    times = turns.take_turns(arms, "plain", device, rounds=rounds, seed=0)
    for name in trees:
        print_line(model, name, times, share, turns.median_interval)


def print_head(column: str) -> None:
    """Print the head of a table of own time, whose lines are of this."""
    print(f"| model | {column} | plain step | own, every step | own, a decision | in a run [95%] |")
    print("|---|---|---|---|---|---|", flush=True)


def print_line(
    model: str,
    name: str,
    times: dict[str, Any],
    share: float,
    interval: Callable[[list[float]], tuple[float, float]],
) -> None:
    """Print a line of it.

    Args:
        model: What is trained.
        name: Of what costs time.
        times: Of `plain`, and of `NAME, step` and `NAME, decision`, in turns.
        share: Of a run's steps that end in a decision.
        interval: Returns the 95% interval of a median.
    """
    base = times["plain"]
    step, decision = times[f"{name}, step"].own, times[f"{name}, decision"].own
    every = [a - b for a, b in zip(step, base.own, strict=True)]
    more = [a - b for a, b in zip(decision, step, strict=True)]
    pairs = zip(every, more, base.whole, strict=True)
    costs = [100 * (a + share * b) / whole for a, b, whole in pairs]
    low, high = interval(costs)
    print(
        f"| {model} | {name} | {1e3 * statistics.median(base.whole):.2f} ms "
        f"| {1e6 * statistics.median(every):.0f} us | {1e6 * statistics.median(more):.0f} us "
        f"| {statistics.median(costs):+.1f}% [{low:.1f}, {high:.1f}] |",
        flush=True,
    )


def load(tree: Path) -> tuple[Any, Any, Any]:
    """Import a version anew; return its module of parts, its workloads and its shipped policy."""
    for name in [n for n in sys.modules if n == "rlbatch" or n.startswith("rlbatch.")]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    try:
        registry = importlib.import_module("rlbatch.policy.registry")
        if not Path(str(registry.__file__)).is_relative_to(tree):
            raise SystemExit(f"Expected rlbatch in {tree}, got {registry.__file__}.")
        overhead = importlib.import_module("rlbatch.agents.evaluate.overhead")
        workloads = importlib.import_module(_WORKLOADS)
        return overhead, workloads, registry.resolve_policy(registry.DEFAULT)
    finally:
        sys.path.remove(str(tree))


if __name__ == "__main__":
    main()
