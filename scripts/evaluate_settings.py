"""Compare policies on random settings of real tasks, as training draws them, with new seeds.

    python scripts/evaluate_settings.py --curves DIR --policy default goodput oracle [--runs 160]

Quicker and wider than `rlbatch bench`: learning rate, coupling, profile, target and start differ
from run to run, and references come from stored curves. Besides the names that `rlbatch policies`
lists there are `oracle`, which knows the best fixed size and goes there at once; `base`, which goes
to the task's own; and `stay`. What `oracle` loses is what looking, measuring and arriving cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbatch.control.engine import DecisionEngine
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.settings import RANDOM, SettingSampler
from rlbatch.policy.base import noise_rate_of
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="append one JSON object a run to this file")
    arguments = parser.parse_args()
    tasks = arguments.task or _named(arguments.curves)
    for policy in arguments.policy:
        one = partial(run_one, str(arguments.curves), tuple(tasks), policy)
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.runs)
        with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
            rows = pool.map(one, seeds, chunksize=4)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        report(policy, rows)


def _named(folder: Path) -> list[str]:
    names = [path.stem for path in sorted(folder.glob("*.npz"))]
    return [name for name in names if not name.startswith("random-")] or [RANDOM]


_samplers: dict[tuple[str, tuple[str, ...]], SettingSampler] = {}  # of this process


def run_one(
    folder: str, tasks: tuple[str, ...], policy: str, seed: int, noise_rate: float | None = None
) -> Row:
    """Run one setting to its end; noise is measured as the policy wants it, or as told."""
    torch.set_num_threads(1)
    key = folder, tasks
    if key not in _samplers:
        _samplers[key] = SettingSampler(Path(folder), tasks)
    rng = np.random.default_rng(seed)
    wanted = NOISE_RATE if policy in GUIDES else noise_rate_of(resolve_policy(policy))
    rate = wanted if noise_rate is None else noise_rate
    episode = LiveEpisode(_samplers[key](rng), noise_rate=rate)
    while episode.run.finished:
        episode = LiveEpisode(_samplers[key](rng), noise_rate=rate)
    decide = _decider(policy, episode)
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
        "ratio": min(episode.ratio, UNREACHED_RATIO) if run.reached else UNREACHED_RATIO,
        "default_ratio": setting.fixed_costs.get(base, np.nan) / setting.reference_cost,
        "decisions": len(sizes) - 1,
        "diverged": run.diverged,
        "batch_sizes": sizes,
    }


def _decider(policy: str, episode: LiveEpisode) -> Callable[[Signals, int], float]:
    base, grid = episode.run.task.batch_size, np.asarray(DEFAULT_ACTIONS)
    if policy in GUIDES:
        best = _best(episode.setting.fixed_costs, base)

        def guide(_: Signals, size: int) -> float:
            aim = {"oracle": best, "base": base, "stay": size}[policy]
            return float(grid[np.abs(grid - np.log2(aim / size)).argmin()])

        return guide
    engine = DecisionEngine(resolve_policy(policy))
    return lambda signals, size: float(np.log2(engine.decide(signals, size).batch_size / size))


def _best(costs: Any, base: int) -> int:
    return min(costs, key=lambda size: costs[size]) if costs else base


def report(policy: str, rows: list[Row]) -> None:
    """Print the geometric mean of the ratios, and by task, coupling and distance."""
    ratios = np.array([row["ratio"] for row in rows])
    print(
        f"{policy}: ratio {_mean(ratios):.3f}  unreached {np.mean(ratios >= UNREACHED_RATIO):.1%}  "
        f"median {np.median(ratios):.2f}  p90 {np.quantile(ratios, 0.9):.2f}",
        flush=True,
    )
    for name in ("task", "lr_coupling", "start_vs_best"):
        groups = sorted({row[name] for row in rows})
        means = (_mean(np.array([r["ratio"] for r in rows if r[name] == g])) for g in groups)
        print(
            f"  by {name}: " + "  ".join(f"{g} {m:.2f}" for g, m in zip(groups, means, strict=True))
        )


def _mean(ratios: Any) -> float:
    return float(np.exp(np.log(ratios).mean()))


if __name__ == "__main__":
    main()
