"""Stored learning curves of fixed sizes, and the costs that follow from them."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from math import inf, isinf, nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.envs.curves import (
    COUPLINGS,
    RATE_SHIFTS,
    SIZE_SHIFTS,
    CurveTable,
    compute_table,
    grid_points,
)
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.profiles import CostWeights, DeviceProfile, resolve_profile
from rlbatch.envs.task import Task, resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

CHEAP_FILE = Path(__file__).parents[1] / "agents" / "evaluate" / "cheap_task.py"
CHEAP = f"{CHEAP_FILE}:make"


@st.composite
def tables(draw: st.DrawFn) -> CurveTable:
    """Some points of the grid, with losses that may rise again and may end early."""
    points = sorted(draw(st.sets(st.sampled_from(grid_points()), min_size=1, max_size=12)))
    validations = draw(st.integers(1, 6))
    steps = sorted(draw(st.sets(st.integers(1, 99), min_size=validations, max_size=validations)))
    seeds = draw(st.integers(1, 3))
    losses = st.one_of(st.just(nan), st.just(inf), st.integers(0, 8).map(lambda k: k / 8))
    cells = len(points) * seeds * validations
    values = draw(st.lists(losses, min_size=cells, max_size=cells))
    shape = len(points), seeds, validations
    return CurveTable(
        "drawn",
        np.array(points, dtype=np.int64),
        np.array(steps, dtype=np.int64),
        np.array(values, dtype=np.float32).reshape(shape),
        planned_steps=draw(st.none() | st.integers(1, 500)),
    )


def steps_by_hand(table: CurveTable, row: int, target: float) -> list[float]:
    """Loop over seeds and validations."""
    steps: list[float] = []
    for seed in range(table.val_loss.shape[1]):
        for step, loss in zip(table.steps, table.val_loss[row, seed], strict=True):
            if loss <= target:
                steps.append(float(step))
                break
        else:
            steps.append(inf)
    return steps


def costs_by_hand(steps: dict[int, list[float]], step_cost: Callable[[int], float]) -> list[float]:
    """Runs that do not arrive, and dearer ones, count four times the best size's median."""
    most = 4.0 * min(statistics.median(runs) * step_cost(size) for size, runs in steps.items())
    means: list[float] = []
    for size, runs in steps.items():
        costs = [min(run * step_cost(size), most) for run in runs]
        means.append(inf if min(runs) == inf else statistics.geometric_mean(costs))
    return means


@given(table=tables(), target=st.integers(0, 8).map(lambda k: k / 8))
def test_steps_to_a_target_are_counted_to_the_first_validation_that_meets_it(
    table: CurveTable, target: float
) -> None:
    for row in range(len(table.points)):
        expected = statistics.median(steps_by_hand(table, row, target))
        assert table.steps_to(row, target) == pytest.approx(expected)


@given(
    table=tables(),
    target=st.integers(0, 8).map(lambda k: k / 8),
    coupling=st.sampled_from(COUPLINGS),
    rate_shift=st.sampled_from(RATE_SHIFTS),
    profile=st.sampled_from(["cpu", "accelerator-512"]).map(resolve_profile),
)
def test_costs_are_steps_at_the_rate_that_the_coupling_gives(
    table: CurveTable,
    target: float,
    coupling: Coupling,
    rate_shift: int,
    profile: DeviceProfile,
) -> None:
    base = 64
    by_seconds = table.costs(target, rate_shift, coupling, profile, CostWeights(), base)
    by_samples = table.costs(
        target, rate_shift, coupling, profile, CostWeights(seconds=0.0, samples=1.0), base
    )

    expected: dict[int, list[float]] = {}  # batch size -> steps of each run
    for row, (size_shift, shift) in enumerate(table.points.tolist()):
        factor = (2.0**size_shift) ** coupling.exponent * 2.0 ** (rate_shift / 2)
        if 2.0 ** (shift / 2) == pytest.approx(factor):
            expected[int(base * 2.0**size_shift)] = steps_by_hand(table, row, target)
    assert by_samples.keys() == by_seconds.keys() == expected.keys()
    if expected:
        assert [by_samples[size] for size in expected] == pytest.approx(
            costs_by_hand(expected, lambda size: size)
        )
        assert [by_seconds[size] for size in expected] == pytest.approx(
            costs_by_hand(expected, lambda size: float(profile.step_seconds(size)))
        )


def test_the_grid_holds_what_any_coupling_and_rate_needs_and_nothing_else() -> None:
    needed: set[tuple[int, int]] = set()
    for size in range(-4, 6):
        for start in (0.5, 1.0, 2.0):
            for exponent in (0.0, 0.5, 1.0):
                rate = start * (2.0**size) ** exponent
                needed.add((size, round(2 * np.log2(rate))))

    points = grid_points()
    assert set(points) == needed
    assert len(points) == len(needed)
    assert points[0] == (0, 0)  # a computation that is stopped has the centre
    assert [abs(size) for size, _ in points] == sorted(abs(size) for size, _ in points)


@given(table=tables())
def test_the_rates_of_a_table_are_those_of_its_default_runs(table: CurveTable) -> None:
    expected = {rate for size, rate in table.points.tolist() if size == 0 and rate in (-2, 0, 2)}
    assert table.rates() == sorted(expected)


@given(table=tables(), rate=st.sampled_from(RATE_SHIFTS))
def test_a_table_serves_a_coupling_where_each_of_its_sizes_was_run_at_its_rate(
    table: CurveTable, rate: int
) -> None:
    points = {(size, shift) for size, shift in table.points.tolist()}
    sizes = {size for size, _ in points}
    for coupling, factor in ((Coupling.NONE, 0), (Coupling.SQRT, 1), (Coupling.LINEAR, 2)):
        complete = all((size, rate + factor * size) in points for size in sizes)
        assert (coupling in table.couplings(rate)) == complete


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_grid_for_one_coupling_serves_this_one(coupling: Coupling) -> None:
    points = grid_points(couplings=[coupling])
    assert set(points) < set(grid_points())
    table = CurveTable(
        "one", np.array(points), np.array([1]), np.zeros((len(points), 1, 1), np.float32)
    )
    # Runs at other learning rates let some sizes serve the others, but never all.
    assert table.couplings(0) == [coupling]


@given(table=tables(), size=st.sampled_from(SIZE_SHIFTS), rate=st.integers(-12, 12))
def test_a_row_is_found_by_its_point(table: CurveTable, size: int, rate: int) -> None:
    row = table.row(size, rate)
    if row is None:
        assert [size, rate] not in table.points.tolist()
    else:
        assert table.points[row].tolist() == [size, rate]


@given(table=tables())
def test_a_table_survives_its_file(
    table: CurveTable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("curves") / "drawn.npz"
    table.save(path)
    loaded = CurveTable.load(path)
    assert (loaded.task, loaded.planned_steps) == (table.task, table.planned_steps)
    for name in ("points", "steps", "val_loss"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))


def small_table() -> CurveTable:
    return CurveTable("small", np.array([[0, 0]]), np.array([1]), np.ones((1, 1, 1), np.float32))


def test_files_that_hold_no_table_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"No learning curves .*missing\.npz.*rlbatch curves"
    ):
        CurveTable.load(tmp_path / "missing.npz")

    small_table().save(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    np.savez(tmp_path / "other.npz", points=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", task=np.array([{}], dtype=object))
    for name, content in (
        ("empty.npz", b""),
        ("half.npz", whole[: len(whole) // 2]),
        ("text.npz", b"no archive"),
        ("other.npz", None),
        ("pickled.npz", None),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ConfigurationError, match=rf"{name}.*not .*learning curves.*rlbatch curves"
        ):
            CurveTable.load(tmp_path / name)


@pytest.fixture(scope="module")
def cheap_table() -> CurveTable:
    return compute_table(CHEAP, range(2), step_factor=1.0)


def test_every_size_that_the_task_allows_was_run(cheap_table: CurveTable) -> None:
    task = resolve_task(CHEAP)
    sizes = {task.batch_size * 2.0**shift for shift in cheap_table.points[:, 0]}
    assert sizes == {1, 2, 4, 8, 16, 32}  # from one sample to max_batch_size=40
    assert cheap_table.val_loss.shape[1:] == (2, len(cheap_table.steps))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("size", [2, 8, 32])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_point_is_the_run_of_that_size_under_the_coupling(
    coupling: Coupling, size: int, scale: float, cheap_table: CurveTable
) -> None:
    """A stored curve has its rate in the task; a run has it from the coupling: the same curve."""
    task = resolve_task(CHEAP)
    shift = int(np.log2(size / task.batch_size))
    row = cheap_table.row(shift, round(2 * (coupling.exponent * shift + np.log2(scale))))
    assert row is not None
    for seed in range(2):
        run = fixed_run_curve(
            task,
            size,
            seed=seed,
            coupling=coupling,
            max_steps=int(cheap_table.steps[-1]),
            target_loss=task.target * 0.95,
            learning_rate_scale=scale,
        )
        stored = cheap_table.val_loss[row, seed]
        known = dict(zip(cheap_table.steps.tolist(), stored.tolist(), strict=True))
        scheduled = [k for k, step in enumerate(run.steps) if step in known]
        assert len(scheduled) >= 3
        for k in scheduled:
            assert known[int(run.steps[k])] == pytest.approx(run.val_loss[k], rel=1e-5)
        assert len(scheduled) == np.isfinite(stored).sum()
        after = [loss for step, loss in known.items() if step > run.steps[-1]]
        assert np.isnan(after).all()


def test_validations_are_where_a_run_makes_them(cheap_table: CurveTable) -> None:
    cadence, step, expected = Cadence(), 0, list[int]()
    while len(expected) < len(cheap_table.steps):
        step += cadence.validation_steps(step)
        expected.append(step)
    assert cheap_table.steps.tolist() == expected


def test_sizes_that_are_no_whole_numbers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 3 samples would run as 1, at the rate and the cost of 1.5."""

    def odd(name: str) -> Task:
        return replace(resolve_task(CHEAP), name=name, batch_size=12)

    monkeypatch.setattr("rlbatch.envs.curves.resolve_task", odd)
    table = compute_table("odd", [0], step_factor=1.0)
    assert {12 * 2.0**shift for shift in table.points[:, 0]} == {3, 6, 12, 24}
    costs = table.costs(0.3, 0, Coupling.NONE, resolve_profile("cpu"), CostWeights(), 12)
    assert costs.keys() == {3, 6, 12, 24}
    assert not isinf(costs[12])
