from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlbatch.agents.evaluate import curve_files
from rlbatch.agents.evaluate.curve_files import curve_path, open_curves, pack
from rlbatch.agents.evaluate.curve_store import CurveKey
from rlbatch.agents.evaluate.fixed_curves import FixedSetting
from rlbatch.agents.evaluate.frontier_runs import FrontierRuns, plans
from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.envs.fixed_run import Curve
from rlbatch.envs.task import resolve_task
from rlbatch.envs.tasks.field import QUICK, field_job
from rlbatch.signals.record import Coupling

KEY = CurveKey("a", 0, "sqrt", 32, "{}", 100, None)


def test_shipped_curves_are_where_a_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve_files, "SHIPPED", tmp_path / "shipped")
    made = tmp_path / "made" / "task#1-sqrt-0.jsonl"
    store = open_curves(made)
    assert store.get(KEY) is None
    store.put(KEY, Curve((1, 2), (32, 64), (0.123456789, math.nan), diverged=True))
    pack(made)

    path = curve_path(tmp_path / "references", "task#1", "sqrt", 0)
    known = open_curves(path).get(KEY)
    assert known is not None
    assert (known.steps, known.samples, known.diverged) == ((1, 2), (32, 64), True)
    assert known.val_loss[0] == 0.1234568
    assert math.isnan(known.val_loss[1])
    with path.open("a") as file:
        file.write('{"torn')
    assert len(open_curves(path).items()) == 1
    assert path.read_text().endswith("\n")  # and what is there is not fetched again


@pytest.mark.parametrize("name", QUICK)
def test_the_quick_suites_frontiers_ship(name: str, tmp_path: Path) -> None:
    """Where numbers of the data differ from those on which they were made, they are made anew."""
    task = resolve_task(f"field:{name}")
    identity = task_identity(f"field:{name}", task)
    names = [path.name for path in curve_files.SHIPPED.glob("*.xz")]
    wanted = [f"{curve_path(Path(), identity, 'sqrt', seed).name}.xz" for seed in range(4)]
    assert set(wanted) <= set(names)
    setting = FixedSetting(task, identity, 0, Coupling.SQRT)
    runs = FrontierRuns(setting, open_curves(curve_path(tmp_path, identity, "sqrt", 0)))
    assert all(map(runs.knows, plans(setting, field_job(name).planned_steps())))
