"""Random settings of real runs, with references from stored curves."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbatch.envs.curves import COUPLINGS, CurveTable, grid_points
from rlbatch.envs.setting_draws import draw_profile
from rlbatch.envs.settings import EpisodeSetting, SettingSampler
from rlbatch.envs.task import Task, resolve_task
from rlbatch.envs.tasks.random_job import KINDS
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

NAMES = ("teacher-student", "tabular-regression")
STEPS = np.arange(10, 1010, 10)


def made_up_losses(task: Task, size_shift: int, rate_shift: int, seed: int) -> np.ndarray:
    """Exponential decay to 0.9 targets: fastest at four times the default size; too large a rate
    diverges."""
    if rate_shift > 4:
        return np.full(len(STEPS), np.nan)
    speed = 0.02 * 2.0 ** (0.3 * rate_shift - 0.2 * abs(size_shift - 2)) * (1 + 0.1 * seed)
    return task.target * (0.9 + 3.0 * np.exp(-speed * STEPS))


def write_tables(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, CurveTable]:
    tables: dict[str, CurveTable] = {}
    for name in names:
        task = resolve_task(name)
        points = [p for p in grid_points() if 1 <= task.batch_size * 2.0 ** p[0] <= 700]
        losses = [[made_up_losses(task, *point, seed) for seed in range(2)] for point in points]
        tables[name] = CurveTable(name, np.array(points), STEPS, np.array(losses, np.float32))
        tables[name].save(folder / f"{name}.npz")
    return tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves")
    write_tables(path)
    return path


@pytest.fixture(scope="module")
def drawn(folder: Path) -> list[EpisodeSetting]:
    sampler, rng = SettingSampler(folder, NAMES), np.random.default_rng(0)
    return [sampler(rng) for _ in range(600)]


def fixed_run_cost(setting: EpisodeSetting, task: Task, size_shift: int) -> float:
    """What a fixed size costs under a setting, from the made-up curves and no table."""
    factor = 2.0 ** (size_shift * setting.coupling.exponent)
    rate_shift = round(2 * np.log2(setting.learning_rate_scale * factor))
    steps = []
    for seed in range(2):
        losses = made_up_losses(task, size_shift, rate_shift, seed).astype(np.float32)
        met = [
            step for step, loss in zip(STEPS, losses, strict=True) if loss <= setting.target_loss
        ]
        if not met:
            return np.inf
        steps.append(met[0])
    size = task.batch_size * 2**size_shift
    assert setting.profile is not None
    seconds = float(setting.profile.step_seconds(size))
    return float(np.exp(np.log(steps).mean())) * (seconds if setting.weights.seconds else size)


def test_the_reference_is_the_cheapest_fixed_size_and_the_default_reaches_the_target(
    drawn: list[EpisodeSetting],
) -> None:
    tasks = {name: resolve_task(name) for name in NAMES}
    for setting in drawn:
        task = tasks[str(setting.task)]
        costs = {
            shift: fixed_run_cost(setting, task, shift)
            for shift in range(-4, 6)
            if 1 <= task.batch_size * 2.0**shift <= 700
        }
        assert np.isfinite(costs[0])
        assert setting.reference_cost == pytest.approx(min(costs.values()))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_only_couplings_that_the_curves_serve_are_drawn(tmp_path: Path, coupling: Coupling) -> None:
    task, name = resolve_task(NAMES[0]), NAMES[0]
    points = [p for p in grid_points([0], [coupling]) if 1 <= task.batch_size * 2.0 ** p[0] <= 700]
    losses = [[made_up_losses(task, *point, seed) for seed in range(2)] for point in points]
    CurveTable(name, np.array(points), STEPS, np.array(losses, np.float32)).save(
        tmp_path / f"{name}.npz"
    )

    sampler, rng = SettingSampler(tmp_path, [name]), np.random.default_rng(0)
    for _ in range(40):
        setting = sampler(rng)
        assert setting.coupling is coupling
        costs = [fixed_run_cost(setting, task, shift) for shift in {size for size, _ in points}]
        assert setting.reference_cost == pytest.approx(min(costs))


def test_every_choice_is_drawn_about_as_often_as_meant(drawn: list[EpisodeSetting]) -> None:
    tasks = {name: resolve_task(name) for name in NAMES}
    assert Counter(s.task for s in drawn).keys() == set(NAMES)
    assert {s.coupling for s in drawn} == set(COUPLINGS)
    assert {s.learning_rate_scale for s in drawn} == {0.5, 1.0, 2.0}
    assert len({s.seed for s in drawn}) == len(drawn)

    samples = [s for s in drawn if s.weights.samples == 1.0]
    assert len(samples) / len(drawn) == pytest.approx(0.1, abs=0.04)
    shifts = Counter(np.log2(s.start_batch_size / tasks[str(s.task)].batch_size) for s in drawn)
    # Of 35 % the start is the default size, and of a ninth of the others by chance.
    assert shifts[0.0] / len(drawn) == pytest.approx(0.35 + 0.65 / 9, abs=0.06)
    assert set(range(-4, 5)) <= shifts.keys()

    targets = np.array([s.target_loss / tasks[str(s.task)].target for s in drawn])
    assert 0.97 <= targets.min() < 1.0
    assert 1.4 < targets.max() <= 1.5


def test_sizes_as_a_user_chooses_them_leave_every_fixed_run_as_it_was(folder: Path) -> None:
    sampler, rng = SettingSampler(folder, NAMES, user_share=1.0), np.random.default_rng(2)
    shifts = []
    for setting in (sampler(rng) for _ in range(300)):
        task = resolve_task(setting.task)
        plain = resolve_task(task.name)
        moved = round(np.log2(task.batch_size / plain.batch_size))
        # The same learning rate at the plain task's size, and so the same costs of all sizes.
        factor = 2.0 ** (-moved * setting.coupling.exponent)
        original = replace(setting, learning_rate_scale=setting.learning_rate_scale * factor)
        for size, cost in setting.fixed_costs.items():
            shift = round(np.log2(size / plain.batch_size))
            expected = fixed_run_cost(original, plain, shift)
            if expected < 2 * setting.reference_cost:  # dearer ones are capped
                assert cost == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(setting.fixed_costs[task.batch_size])
        shifts.append(moved)
    assert len(set(shifts)) >= 4


def test_start_sizes_can_be_run(folder: Path) -> None:
    sampler, rng = SettingSampler(folder, NAMES, log2_start=(-12, 12)), np.random.default_rng(1)
    for setting in (sampler(rng) for _ in range(100)):
        task = resolve_task(setting.task)
        assert isinstance(setting.start_batch_size, int)
        assert 1 <= setting.start_batch_size <= (task.max_batch_size or len(task.train_set))  # type: ignore[arg-type]


def test_equal_generators_draw_equal_episodes(folder: Path, drawn: list[EpisodeSetting]) -> None:
    sampler, rng = SettingSampler(folder, NAMES), np.random.default_rng(0)
    again = [sampler(rng) for _ in range(20)]
    assert [asdict(s) for s in again] == [asdict(s) for s in drawn[:20]]


def test_drawn_devices_reach_from_compute_bound_to_launch_bound() -> None:
    rng = np.random.default_rng(0)
    profiles = [draw_profile(rng) for _ in range(2000)]
    knees = np.log2([p.launch_seconds / p.sample_seconds for p in profiles])
    # Uniform on [1, 13]: mean 7 and variance 12.
    assert 1.0 <= knees.min() < 1.1
    assert 12.9 < knees.max() <= 13.0
    assert knees.mean() == pytest.approx(7.0, abs=0.3)
    assert knees.var() == pytest.approx(12.0, rel=0.1)
    assert all(0 <= p.update_seconds <= 0.5 * p.launch_seconds for p in profiles)
    assert all(1 <= p.sharpness <= 4 for p in profiles)


def test_missing_or_wrong_tables_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="At least one task is needed"):
        SettingSampler(folder, ())
    with pytest.raises(ConfigurationError, match=r"No learning curves at .*digits-mlp\.npz"):
        SettingSampler(folder, (*NAMES, "digits-mlp"))
    (tmp_path / "digits-mlp.npz").write_bytes((folder / f"{NAMES[0]}.npz").read_bytes())
    with pytest.raises(ConfigurationError, match=r"curves of 'teacher-student', expected 'digits"):
        SettingSampler(tmp_path, ("digits-mlp",))


def test_random_tasks_have_their_share_of_the_draws(tmp_path: Path) -> None:
    names = ["random:3:0.004:0.5", "random:8:0.01:0.7"]
    table = write_tables(tmp_path, NAMES[:1])[NAMES[0]]
    for number, name in enumerate(names):
        losses = table.val_loss * (resolve_task(name).target / resolve_task(NAMES[0]).target)
        replace(table, task=name, val_loss=losses, planned_steps=70 + number).save(
            tmp_path / f"random-{number}.npz"
        )

    sampler, rng = SettingSampler(tmp_path, ("random", NAMES[0])), np.random.default_rng(0)
    drawn = Counter((s.task, s.planned_steps) for s in (sampler(rng) for _ in range(300)))
    assert drawn.keys() == {(NAMES[0], None), (names[0], 70), (names[1], 71)}
    assert drawn[NAMES[0], None] / 300 == pytest.approx(1 - KINDS["random"].share, abs=0.1)

    transformer = "random-transformer:4:0.01:2"
    losses = table.val_loss * (resolve_task(transformer).target / resolve_task(NAMES[0]).target)
    replace(table, task=transformer, val_loss=losses, planned_steps=90).save(
        tmp_path / "random-transformer-0004.npz"
    )
    both = SettingSampler(tmp_path, ("random", "random-transformer"))
    kinds = Counter(str(both(rng).task).split(":")[0] for _ in range(600))
    shares = KINDS["random-transformer"].share / sum(kind.share for kind in KINDS.values())
    assert kinds["random-transformer"] / 600 == pytest.approx(shares, abs=0.06)

    alone = SettingSampler(tmp_path, ("random",))
    assert {alone(rng).task for _ in range(20)} == set(names)
    with pytest.raises(ConfigurationError, match=r"No learning curves of random tasks in .*empty"):
        SettingSampler(tmp_path / "empty", ("random",))


def test_plans_are_told_and_drawn_as_often_as_asked(tmp_path: Path) -> None:
    plain, scheduled = NAMES[0], "random:3:0.004:0.5"
    table = write_tables(tmp_path, (plain,))[plain]
    losses = table.val_loss * (resolve_task(scheduled).target / resolve_task(plain).target)
    replace(table, task=scheduled, val_loss=losses, planned_steps=70).save(
        tmp_path / "random-0.npz"
    )

    def plans(**shares: Any) -> dict[str, list[tuple[int | None, bool]]]:
        sampler, rng = SettingSampler(tmp_path, ("random", plain), **shares), _rng()
        drawn = [sampler(rng) for _ in range(400)]
        return {
            name: [(s.planned_steps, s.plan_known) for s in drawn if s.task == name]
            for name in (plain, scheduled)
        }

    usual = plans()
    assert set(usual[plain]) == {(None, True)}
    assert set(usual[scheduled]) == {(70, True)}
    some = plans(plan_shares=(0.25, 0.5))
    assert np.mean([known for _, known in some[scheduled]]) == pytest.approx(0.25, abs=0.1)
    assert {steps for steps, _ in some[scheduled]} == {70}
    drawn = [steps for steps, _ in some[plain] if steps is not None]
    assert len(drawn) / len(some[plain]) == pytest.approx(0.5, abs=0.12)
    assert len(set(drawn)) > 20


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("hopeless", ["no default run", "never reached", "not finite"])
def test_tables_without_any_usable_setting_are_no_endless_search(
    hopeless: str, tmp_path: Path
) -> None:
    table = write_tables(tmp_path, ("teacher-student",))["teacher-student"]
    points, losses = table.points, table.val_loss
    if hopeless == "no default run":
        keep = points[:, 0] == 1
        points, losses = points[keep], losses[keep]
    else:
        losses = np.full_like(losses, np.nan if hopeless == "not finite" else 1e9)
    CurveTable(table.task, points, STEPS, losses).save(tmp_path / "teacher-student.npz")
    sampler = SettingSampler(tmp_path, ("teacher-student",))
    with pytest.raises(ConfigurationError, match=r"curves of teacher-student .*default batch size"):
        sampler(np.random.default_rng(0))


def test_step_costs_are_known_as_often_as_asked_and_nothing_else_changes(
    folder: Path, drawn: list[EpisodeSetting]
) -> None:
    assert all(setting.curve_known for setting in drawn)
    for share, least, most in ((0.0, 0.0, 0.0), (0.5, 0.4, 0.6)):
        sampler, rng = SettingSampler(folder, NAMES, known_share=share), np.random.default_rng(0)
        others = [sampler(rng) for _ in range(200)]
        assert least <= np.mean([setting.curve_known for setting in others]) <= most
        assert asdict(replace(others[0], curve_known=True)) == asdict(drawn[0])
