"""Make the fixed runs of the field suite: those of the frontiers, then those to the targets.

    python scripts/make_field_curves.py --out references [--suite field:dev] [--seeds 4]

What a stopped call has made is kept. `rlbatch bench --suite ... --references FOLDER` takes the
curves from the folder; `--ship` packs them into the package, where every benchmark finds them.
"""

from __future__ import annotations

import argparse
import lzma
import time
from pathlib import Path

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_files import SHIPPED, curve_path, open_curves
from rlbatch.agents.evaluate.frontier_runs import plans, run_frontier
from rlbatch.agents.evaluate.planned_runs import fixed_setting, frontier_works
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.evaluate.settings import BenchSettings, Group
from rlbatch.agents.evaluate.suite import STARTS, TOLD, suite_parts
from rlbatch.envs.task import resolve_task
from rlbatch.envs.threads import use_one_thread


def main() -> None:
    """Make what is missing, task by task, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", default="field:dev")
    parser.add_argument("--task", nargs="+", help="only these, without the prefix")
    parser.add_argument("--coupling", default="sqrt")
    parser.add_argument("--target-seeds", type=int, default=2)
    parser.add_argument("--ship", action="store_true", help="pack the curves into the package")
    arguments = parser.parse_args()
    use_one_thread()
    *planned, to_target = suite_parts(arguments.suite, ["fixed"], [arguments.coupling], None)
    for part in planned:
        (name,) = part.settings.tasks
        if arguments.task and name.partition(":")[2] not in arguments.task:
            continue
        began = time.perf_counter()
        for work in frontier_works(part.settings, arguments.out):
            run_frontier(work)
            count = len(plans(work.setting, work.planned))
            print(f"{name} seed {work.setting.seed}: {count} ends, {_since(began)}", flush=True)
        for seed in range(arguments.target_seeds):
            group = Group(name, arguments.coupling, seed)
            costs = _to_target(to_target.settings, group, arguments.out)
            print(f"{name} seed {seed}: {costs}, {_since(began)}", flush=True)
        if arguments.ship:
            ship(name, arguments.coupling, to_target.settings, arguments.out)


def ship(name: str, coupling: str, settings: BenchSettings, folder: Path) -> None:
    """Pack a task's curves into the package."""
    SHIPPED.mkdir(exist_ok=True)
    task = resolve_task(name)
    for seed in range(32):
        identity = fixed_setting(settings, Group(name, coupling, seed), task).task_id
        path = curve_path(folder, identity, coupling, seed)
        if path.is_file():
            packed = lzma.compress(path.read_bytes(), preset=9)
            (SHIPPED / f"{path.name}.xz").write_bytes(packed)


def _to_target(settings: BenchSettings, group: Group, folder: Path) -> str:
    task = resolve_task(group.task)
    setting = fixed_setting(settings, group, task)
    path = curve_path(folder, setting.task_id, group.coupling, group.seed)
    found = find_references(
        setting,
        [resolve_clock(name) for name in TOLD],
        start_sizes=[round(factor * task.batch_size) for factor in STARTS],
        store=open_curves(path),
    )
    return "; ".join(
        f"{name}: best {one.batch_size}, user's size x{one.cost_of(task.batch_size) / one.cost:.2f}"
        for name, one in found.items()
    )


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.0f} s"


if __name__ == "__main__":
    main()
