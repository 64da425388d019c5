"""Recorded references: which fixed size was best, and what each one cost.

    python -m tests.golden.references    writes the data anew

The learning curves are recorded, too: nothing is trained, and no machine has numbers of its own.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_files import SHIPPED
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import FixedSetting
from rlbatch.agents.evaluate.reference import Reference, budget_reference, find_references
from rlbatch.envs.curves import CurveTable, compute_table
from rlbatch.envs.profiles import CostWeights, resolve_profile
from rlbatch.envs.task import resolve_task
from rlbatch.signals.record import Coupling
from tests.golden.recordings import DATA

CURVES, TABLE, FOUND = DATA / "curves.jsonl", DATA / "curve-table.npz", DATA / "references.json"
CHEAP = f"{Path(__file__).parents[1] / 'agents' / 'evaluate' / 'cheap_task.py'}"
CLOCKS = [resolve_clock(name) for name in ("cpu", "samples", "accelerator-512", "cpu:joules")]
BUDGET, LOSS = 0.05, 0.5


def references(path: Path, *, made: bool) -> dict[str, float]:
    """Return every reference of the cheap tasks from the curves of a file.

    Args:
        path: Of the curves.
        made: Curves that are not there may be made; else one that is asked for is an error.
    """

    def refuse(size: int) -> None:
        if not made:
            raise AssertionError(f"the curve of {size} samples was recorded and is made again")

    found: dict[str, float] = {}
    for make in ("make", "scheduled", "hopeless"):
        for coupling in (Coupling.NONE, Coupling.SQRT):
            task, name = resolve_task(f"{CHEAP}:{make}"), f"{make}, {coupling.value}"
            setting = FixedSetting(task, make, 0, coupling, max_steps=400)
            store = CurveStore(path)
            sought = find_references(
                setting, CLOCKS, start_sizes=[1, 32], store=store, on_curve=refuse
            )
            for clock, reference in sought.items():
                found |= plain(f"{name}, {clock}", reference)
            budget = budget_reference(
                setting, CLOCKS[0], BUDGET, LOSS, store=store, on_curve=refuse
            )
            found |= plain(f"{name}, budget", budget)
    return found


def plain(name: str, reference: Reference) -> dict[str, float]:
    costs = {f"{name}, {size}": cost for size, cost in reference.costs.items()}
    best = {"cost": reference.cost, "size": reference.batch_size, "reached": reference.reached}
    return costs | {f"{name}, {what}": value for what, value in best.items()}


def table_costs(path: Path) -> dict[str, float]:
    """Return the costs of each fixed size by a table of curves."""
    table = CurveTable.load(path)
    return {
        f"{target}, {rate}, {coupling.value}, {profile}, {size}": cost
        for target in (0.3, 0.5)
        for rate in table.rates()
        for coupling in table.couplings(rate)
        for profile in ("cpu", "accelerator-512")
        for size, cost in table.costs(
            target, rate, coupling, resolve_profile(profile), CostWeights(), 8
        ).items()
    }


def shipped(folder: Path) -> dict[str, str]:
    """Return a digest of what a store reads from each file that ships; they are unpacked there."""
    found: dict[str, str] = {}
    for path in sorted(SHIPPED.glob("*.xz")):
        lines = folder / path.stem
        lines.write_bytes(lzma.decompress(path.read_bytes()))
        rows = [[asdict(key), asdict(curve)] for key, curve in CurveStore(lines).items()]
        found[path.name] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return found


def record() -> None:
    CURVES.unlink(missing_ok=True)
    table = compute_table(f"{CHEAP}:make", range(2), step_factor=1.0)
    replace(table, task="cheap").save(TABLE)  # the file's place is this machine's
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "references": references(CURVES, made=True),
            "table": table_costs(TABLE),
            "shipped": shipped(Path(folder)),
        }
    FOUND.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    record()
