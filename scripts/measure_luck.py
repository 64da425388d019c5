"""How much of a ratio to the best fixed size is luck in when a run meets one number.

    rlbatch bench --task field:wide-table field:autoencoder --policy default --lr-coupling sqrt \
        --seeds 4 --profile accelerator-4096:untold --references references --out out/target
    python scripts/measure_luck.py --results out/target --references references

`rlbatch bench` divides the cost at which a run meets its target by that of the best fixed size of
the same seed: the least of some seven costs, each of which a seed moves by 10 to 50% where losses
are level. Here a cost is also taken at three losses just above the target (`smoothed_cost`), and
also divided by that of the size which is best on average over all seeds. Printed are geometric
means over the runs of each policy and clock; a run that is not reached counts 4.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_files import curve_path, open_curves
from rlbatch.agents.evaluate.fixed_curves import FixedCurves, planned_steps, size_grid
from rlbatch.agents.evaluate.group import TRAJECTORIES_FILE
from rlbatch.agents.evaluate.planned_runs import fixed_setting
from rlbatch.agents.evaluate.rows import Row, read_results
from rlbatch.agents.evaluate.settings import BenchSettings, Group
from rlbatch.agents.own_tasks.compared_run import smoothed_cost
from rlbatch.envs.fixed_run import Curve
from rlbatch.envs.live import Validation
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.task import resolve_task

WIDEST = 64  # multiple of the task's size, and its inverse


class Costs(NamedTuple):
    """Of one run: at the target, and smoothed."""

    plain: float
    smoothed: float


def main() -> None:
    """Print the means of each policy and clock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="of benchmarks")
    parser.add_argument("--references", type=Path, required=True, help="their learning curves")
    arguments = parser.parse_args()
    logs: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for folder in arguments.results:
        runs, rows = _validations(folder), read_results(folder)
        seeds = sorted({row["seed"] for row in rows})
        for row in rows:
            groups = [Group(row["task"], row["lr_coupling"], seed) for seed in seeds]
            profile = str(row["profile"]).removesuffix(":untold")
            of_seeds = [_fixed_costs(arguments.references, group, profile) for group in groups]
            ours = _run_costs(row, runs[_cell(row)])
            logs[row["policy"], row["profile"]].append(_logs(ours, row["seed"], seeds, of_seeds))
    for (policy, profile), found in sorted(logs.items()):
        means = np.exp(np.mean(found, axis=0))
        print(
            f"{policy}, {profile}: {len(found)} runs, over the best size of the seed "
            f"{means[0]:.3f}, smoothed {means[1]:.3f}; over the best on average {means[2]:.3f}, "
            f"smoothed {means[3]:.3f}",
            flush=True,
        )


def _logs(
    ours: Costs | None, seed: int, seeds: list[int], of_seeds: list[dict[int, Costs]]
) -> list[float]:
    """Return log ratios: to the best of the seed and on average, plain and smoothed by turns."""
    of_seed = of_seeds[seeds.index(seed)]
    found: list[float] = []
    for choose in (_best_of_seed, _best_on_average):
        for place in range(2):
            best = choose(of_seed, of_seeds, place)
            ratio = UNREACHED_RATIO if ours is None else ours[place] / best
            found.append(math.log(min(ratio, UNREACHED_RATIO)))
    return found


def _best_of_seed(of_seed: dict[int, Costs], _: Iterable[dict[int, Costs]], place: int) -> float:
    return min(costs[place] for costs in of_seed.values())


def _best_on_average(
    of_seed: dict[int, Costs], of_seeds: list[dict[int, Costs]], place: int
) -> float:
    """Return the cost, with this seed, of the size whose mean log ratio is least."""

    def cost(each: dict[int, Costs], size: int) -> float:
        least = _best_of_seed(each, (), place)
        return min(each[size][place] if size in each else math.inf, UNREACHED_RATIO * least)

    def mean(size: int) -> float:
        ratios = [cost(each, size) / _best_of_seed(each, (), place) for each in of_seeds]
        return float(np.mean(np.log(ratios)))

    sizes = sorted({size for each in of_seeds for size in each})
    return cost(of_seed, min(sizes, key=mean))


@cache
def _fixed_costs(references: Path, group: Group, profile: str) -> dict[int, Costs]:
    """Return the costs of the fixed sizes that reached the target."""
    task, clock = resolve_task(group.task), resolve_clock(profile)
    settings = BenchSettings((group.task,), ("fixed",), (group.coupling,), (profile,))
    setting = fixed_setting(settings, group, task)
    store = open_curves(curve_path(references, setting.task_id, group.coupling, group.seed))
    curves = FixedCurves(setting, store, task.target, planned_steps(setting, store))
    found: dict[int, Costs] = {}
    for size in size_grid(task):
        if 1 / WIDEST <= size / task.batch_size <= WIDEST:
            curve = curves.curve(size, 1)  # as far as it is known
            if curve.reached:
                seen = _seen(curve, curves.cost(clock, size, np.array(curve.steps)))
                found[size] = _costs(seen, task.target)
    return found


def _seen(curve: Curve, costs: Iterable[float]) -> list[Validation]:
    columns = curve.steps, curve.samples, costs, curve.val_loss
    return [Validation(*row) for row in zip(*columns, strict=True)]


def _costs(seen: list[Validation], target: float) -> Costs:
    """Return the costs of a run whose last validation met the target."""
    return Costs(seen[-1].cost, smoothed_cost(seen, target))


def _run_costs(row: Row, validations: list[list[float]]) -> Costs | None:
    if not row["reached"]:
        return None
    seen = [Validation(0, 0, cost, loss) for cost, loss in validations]
    return _costs(seen, resolve_task(row["task"]).target)


def _cell(row: Row) -> tuple[object, ...]:
    names = "task", "policy", "lr_coupling", "profile", "objective", "start_batch_size", "seed"
    return tuple(row[name] for name in names)


def _validations(folder: Path) -> dict[tuple[object, ...], list[list[float]]]:
    lines = (folder / TRAJECTORIES_FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {tuple(row["cell"]): row["validations"] for row in rows}


if __name__ == "__main__":
    main()
