"""Compare policies on random settings of real tasks, as training draws them, with new seeds.

    python scripts/evaluate_settings.py --curves DIR --policy default goodput oracle [--runs 160]

Quicker and wider than `rlbatch bench`: learning rate, coupling, profile, target and start differ
from run to run, and references come from stored curves. Besides the names that `rlbatch policies`
lists there are `oracle`, which knows the best fixed size and goes there at once; `base`, which goes
to the task's own; and `stay`. What `oracle` loses is what looking, measuring and arriving cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.control.engine import DecisionEngine
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.budget_episode import begin_episode
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.settings import SettingSampler
from rlbatch.envs.tasks.random_job import RANDOM
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.base import noise_rate_of
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Signals

FIRST_SEED = 1_000_000
GUIDES = ("oracle", "base", "stay")
Row = dict[str, Any]


def main() -> None:
    """Print a line a policy, and one for each way to split its runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--policy", nargs="+", required=True)
    parser.add_argument("--task", nargs="+", help="default: every named table in the folder")
    parser.add_argument("--runs", type=int, default=160)
    parser.add_argument(
        "--learned-costs", action="store_true", help="steps' costs are learned from the run"
    )
    parser.add_argument("--budget", action="store_true", help="a budget instead of a target")
    parser.add_argument("--mixed", action="store_true", help="cost is joules or a mix")
    parser.add_argument("--sampled", action="store_true", help="draw the learned policy's actions")
    parser.add_argument("--no-guard", action="store_true", help="roll nothing back")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="append one JSON object a run to this file")
    arguments = parser.parse_args()
    tasks = arguments.task or _named(arguments.curves)
    for policy in arguments.policy:
        one = partial(
            run_one,
            str(arguments.curves),
            tuple(tasks),
            policy,
            changed=Changed(
                learned_costs=arguments.learned_costs,
                budget=arguments.budget,
                mixed=arguments.mixed,
                sampled=arguments.sampled,
                guard=not arguments.no_guard,
            ),
        )
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.runs)
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, use_one_thread) as pool:
            rows = pool.map(one, seeds, chunksize=4)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        report(policy, rows)


def _named(folder: Path) -> list[str]:
    names = [path.stem for path in sorted(folder.glob("*.npz"))]
    return [name for name in names if not name.startswith("random-")] or [RANDOM]


@dataclass(frozen=True)
class Changed:
    """What may be other than usual, as the command's options say."""

    learned_costs: bool = False
    budget: bool = False
    mixed: bool = False
    sampled: bool = False
    guard: bool = True

    def sampler(self, folder: str, tasks: tuple[str, ...]) -> SettingSampler:
        """Return what draws the settings."""
        return SettingSampler(
            Path(folder),
            tasks,
            known_share=float(not self.learned_costs),
            budget_share=float(self.budget),
            mixed_share=float(self.mixed),
        )


_samplers: dict[tuple[str, tuple[str, ...], Changed], SettingSampler] = {}  # of this process


def run_one(
    folder: str,
    tasks: tuple[str, ...],
    policy: str,
    seed: int,
    noise_rate: float | None = None,
    changed: Changed = Changed(),
) -> Row:
    """Run one setting to its end; noise is measured as the policy wants it, or as told.

    Args:
        folder: Of the learning curves.
        tasks: To draw from.
        policy: A name as in the command's options.
        seed: Of the setting.
        noise_rate: How densely noise is measured; None: as the policy wants it.
        changed: What is other than usual.
    """
    key = folder, tasks, changed
    if key not in _samplers:
        _samplers[key] = changed.sampler(folder, tasks)
    rng = np.random.default_rng(seed)
    wanted = NOISE_RATE if policy in GUIDES else noise_rate_of(resolve_policy(policy))
    rate = wanted if noise_rate is None else noise_rate
    drawn = (
        begin_episode(replace(_samplers[key](rng), noise_rate=rate, guard=changed.guard))
        for _ in itertools.count()
    )
    episode = next(episode for episode in drawn if not episode.run.finished)
    decide = _decider(policy, episode, seed if changed.sampled else None)
    signals, sizes, over = episode.first, [episode.run.batch_size], False
    while not over:
        step = episode.step(decide(signals, episode.run.batch_size))
        signals, over = step.signals, step.terminated or step.truncated
        sizes.append(episode.run.batch_size)
    setting, run = episode.setting, episode.run
    base, best = run.task.batch_size, _best(setting.fixed_costs, run.task.batch_size)
    return {
        "policy": policy,
        "seed": seed,
        "task": setting.task if tasks != (RANDOM,) else RANDOM,
        "lr_coupling": setting.coupling.value,
        "start_vs_best": round(np.log2(setting.start_batch_size / best)),
        "ratio": min(episode.ratio, UNREACHED_RATIO) if episode.reached else UNREACHED_RATIO,
        "default_ratio": setting.fixed_costs.get(base, np.nan) / setting.reference_cost,
        "decisions": len(sizes) - 1,
        "diverged": run.diverged,
        "batch_sizes": sizes,
    }


def _decider(
    policy: str, episode: LiveEpisode, seed: int | None
) -> Callable[[Signals, int], float]:
    base, grid = episode.run.task.batch_size, np.asarray(DEFAULT_ACTIONS)
    if policy in GUIDES:
        best = _best(episode.setting.fixed_costs, base)

        def guide(_: Signals, size: int) -> float:
            aim = {"oracle": best, "base": base, "stay": size}[policy]
            return float(grid[np.abs(grid - np.log2(aim / size)).argmin()])

        return guide
    made = resolve_policy(policy)
    if seed is not None and isinstance(made, LearnedPolicy):
        made = replace(made, sample=True, seed=seed)
    engine = DecisionEngine(made)
    return lambda signals, size: float(np.log2(engine.decide(signals, size).batch_size / size))


def _best(costs: Any, base: int) -> int:
    return min(costs, key=lambda size: costs[size]) if costs else base


def report(policy: str, rows: list[Row]) -> None:
    """Print the geometric mean of the ratios, and by task, coupling and distance."""
    ratios = np.array([row["ratio"] for row in rows])
    print(
        f"{policy}: ratio {geometric_mean(ratios):.3f}  "
        f"unreached {np.mean(ratios >= UNREACHED_RATIO):.1%}  "
        f"median {np.median(ratios):.2f}  p90 {np.quantile(ratios, 0.9):.2f}",
        flush=True,
    )
    for name in ("task", "lr_coupling", "start_vs_best"):
        groups = sorted({row[name] for row in rows})
        means = (
            geometric_mean(np.array([r["ratio"] for r in rows if r[name] == g])) for g in groups
        )
        print(
            f"  by {name}: " + "  ".join(f"{g} {m:.2f}" for g, m in zip(groups, means, strict=True))
        )


def geometric_mean(ratios: Any) -> float:
    """Return the geometric mean of ratios."""
    return float(np.exp(np.log(ratios).mean()))


if __name__ == "__main__":
    main()
