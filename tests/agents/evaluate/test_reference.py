from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlbatch.agents.evaluate.clocks import CostClock, resolve_clock
from rlbatch.agents.evaluate.curve_store import CurveStore
from rlbatch.agents.evaluate.fixed_curves import (
    FixedCurves,
    FixedSetting,
    planned_steps,
    size_grid,
)
from rlbatch.agents.evaluate.reference import budget_reference, find_references
from rlbatch.envs.profiles import step_cost
from rlbatch.envs.task import Task
from rlbatch.signals.record import Coupling

CLOCKS = [resolve_clock(name) for name in ("cpu", "samples", "accelerator-512")]


def train_plainly(
    task: Task, size: int, seed: int, exponent: float, steps: int
) -> Iterator[tuple[float, list[int]]]:
    """Yield (validation loss, sizes of all batches so far) at each validation of a plain loop."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= (size / task.batch_size) ** exponent
    inputs, targets = task.train_set.tensors  # type: ignore[attr-defined]
    val_inputs, val_targets = task.val_set.tensors  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    batches: list[int] = []
    due = 1
    for step in range(1, steps + 1):
        order = order or torch.randperm(len(inputs), generator=generator).tolist()
        chosen, order = order[:size], order[size:]
        optimizer.zero_grad()
        ((model(inputs[chosen]) - targets[chosen]) ** 2).mean().backward()
        optimizer.step()
        batches.append(len(chosen))
        if step == due:  # the default cadence: every 3% of the steps so far
            due = step + max(1, int(0.03 * step))
            with torch.no_grad():
                loss = float(((model(val_inputs) - val_targets) ** 2).mean())
            yield loss, list(batches)


def cost_of(clock: CostClock, batches: list[int], base: int) -> float:
    assert clock.profile is not None
    return float(np.sum(step_cost(clock.profile, clock.weights, np.array(batches), base)))


def full_sweep(task: Task, seed: int, exponent: float) -> dict[str, dict[int, float]]:
    """Cost to target of every size on every clock, with nothing stopped early."""
    costs: dict[str, dict[int, float]] = {clock.name: {} for clock in CLOCKS}
    for size in (1, 2, 4, 8, 16, 32):
        for loss, batches in train_plainly(task, size, seed, exponent, 5000):
            if loss <= task.target:
                for clock in CLOCKS:
                    costs[clock.name][size] = cost_of(clock, batches, task.batch_size)
                break
    return costs


def test_the_grid_goes_outwards_from_the_default_within_the_limits(cheap_task: Task) -> None:
    assert size_grid(cheap_task) == [8, 4, 16, 2, 32, 1]


@pytest.mark.parametrize(
    ("coupling", "exponent"), [(Coupling.NONE, 0.0), (Coupling.SQRT, 0.5), (Coupling.LINEAR, 1.0)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_reference_is_what_a_full_sweep_finds(
    cheap_task: Task, seed: int, coupling: Coupling, exponent: float
) -> None:
    sweep = full_sweep(cheap_task, seed, exponent)
    setting = FixedSetting(cheap_task, "cheap", seed, coupling)

    found = find_references(setting, CLOCKS, start_sizes=[1, 32])

    for clock in CLOCKS:
        costs, reference = sweep[clock.name], found[clock.name]
        best = min(costs, key=lambda size: costs[size])
        assert reference.reached
        assert reference.batch_size == best
        assert reference.cost == pytest.approx(costs[best])
        for size in (1, 8, 32):
            expected = min(costs.get(size, math.inf), 4.0 * costs[best])
            assert reference.cost_of(size) == pytest.approx(expected), size


def test_clocks_asked_alone_or_together_get_the_same_answer(cheap_task: Task) -> None:
    setting = FixedSetting(cheap_task, "cheap", 3, Coupling.SQRT)
    together = find_references(setting, CLOCKS)

    for clock in CLOCKS:
        alone = find_references(setting, [clock])[clock.name]
        assert (alone.cost, alone.batch_size) == (
            together[clock.name].cost,
            together[clock.name].batch_size,
        )
        assert alone.cost_of(8) == together[clock.name].cost_of(8)


def test_a_dear_size_is_stopped_early(cheap_task: Task) -> None:
    store = CurveStore()
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT)
    reference = find_references(setting, [CLOCKS[0]], store=store)["cpu"]

    steps = {key.batch_size: curve.steps[-1] for key, curve in store.items()}
    dear = {key.batch_size for key, curve in store.items() if not curve.reached}
    assert dear  # or else this task shows nothing
    for size in dear:
        spent = float(CLOCKS[0].run_cost(steps[size], size, 50, 8))
        assert reference.cost <= spent < 1.5 * reference.cost


def test_a_narrow_search_leaves_out_what_is_far_from_the_best(cheap_task: Task) -> None:
    setting = FixedSetting(replace(cheap_task, batch_size=2), "cheap", 0, Coupling.NONE)
    clock, runs = resolve_clock("samples"), list[list[int]]()
    found = []
    for narrow, starts in ((False, []), (True, []), (True, [32])):
        runs.append([])
        asked = {"start_sizes": starts, "on_curve": runs[-1].append, "narrow": narrow}
        found.append(find_references(setting, [clock], **asked)[clock.name])
    full, narrow, _ = found
    assert [one.cost for one in found] == [full.cost] * 3
    assert full.batch_size == narrow.batch_size <= 2  # or else this shows something else
    assert sorted(set(runs[0])) == [1, 2, 4, 8, 16, 32]
    assert sorted(set(runs[1])) == [1, 2, 4, 8]
    assert sorted(set(runs[2])) == [1, 2, 4, 8, 32]


def test_a_curve_is_computed_once_even_by_another_process(cheap_task: Task, tmp_path: Path) -> None:
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT)
    path, ran = tmp_path / "curves.jsonl", list[int]()
    first = find_references(setting, CLOCKS[:1], store=CurveStore(path), on_curve=ran.append)
    assert sorted(ran) == [1, 2, 4, 8, 16, 32]
    ran.clear()

    again = find_references(setting, CLOCKS[:1], store=CurveStore(path), on_curve=ran.append)

    assert ran == []
    assert again == first


def test_a_target_that_no_size_reaches_leaves_what_the_default_spent(hopeless_task: Task) -> None:
    setting = FixedSetting(hopeless_task, "hopeless", 0, Coupling.NONE, max_steps=50)

    reference = find_references(setting, CLOCKS[:1])["cpu"]

    assert not reference.reached
    assert reference.batch_size == 8
    assert reference.cost == pytest.approx(float(CLOCKS[0].run_cost(50, 8, 50, 8)))


def test_a_wall_clock_reference_is_one_of_its_own_measured_costs(cheap_task: Task) -> None:
    store = CurveStore()
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT)

    reference = find_references(setting, [resolve_clock("wall")], store=store)["wall"]

    measured = {key.batch_size: curve.seconds[-1] for key, curve in store.items() if curve.reached}
    assert reference.cost == min(measured.values()) == measured[reference.batch_size]


def test_a_schedule_is_planned_from_the_default_run_without_it(
    cheap_task: Task, scheduled_task: Task
) -> None:
    validations = train_plainly(cheap_task, 8, 0, 0.0, 600)
    steps = next(len(batches) for loss, batches in validations if loss <= cheap_task.target)

    plain = FixedSetting(cheap_task, "cheap", 0, Coupling.NONE)
    setting = FixedSetting(scheduled_task, "scheduled", 0, Coupling.NONE)

    assert planned_steps(plain, CurveStore()) is None
    assert planned_steps(setting, CurveStore()) == math.ceil(1.5 * steps)
    assert find_references(setting, CLOCKS[:1])["cpu"].reached


def test_a_schedule_is_as_long_as_the_task_says(scheduled_task: Task) -> None:
    samples = len(scheduled_task.train_set)  # type: ignore[arg-type]
    task = replace(scheduled_task, epochs=3.0)
    setting = FixedSetting(task, "scheduled", 0, Coupling.NONE)
    store = CurveStore()

    assert planned_steps(setting, store) == math.ceil(3 * samples / task.batch_size)
    assert not list(store.items())  # nothing had to be run for it


def test_the_budget_reference_is_the_first_size_to_have_the_loss(cheap_task: Task) -> None:
    clock, budget, loss = CLOCKS[0], 0.05, 0.5
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.NONE)
    expected: dict[int, float] = {}
    for size in (1, 2, 4, 8, 16, 32):
        costs = [
            cost_of(clock, batches, 8)
            for value, batches in train_plainly(cheap_task, size, 0, 0.0, 400)
            if value <= loss
        ]
        expected[size] = min([*costs, 2 * budget])

    reference = budget_reference(setting, clock, budget, loss)

    assert reference.costs == pytest.approx(expected)
    assert reference.cost == pytest.approx(min(expected.values()))
    assert reference.reached == (min(expected.values()) < 2 * budget)


def test_a_loss_that_no_fixed_size_has_counts_at_the_end_of_its_run(cheap_task: Task) -> None:
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.NONE)

    reference = budget_reference(setting, CLOCKS[0], 0.02, 1e-9)

    assert not reference.reached
    assert reference.cost == pytest.approx(0.04)


def test_a_size_that_was_limited_before_the_best_was_known_is_gone_on_with(
    cheap_task: Task,
) -> None:
    clock = CLOCKS[0]  # a larger size takes fewer steps than the default and is the best
    free = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT)
    expected = find_references(free, [clock])[clock.name]
    store = CurveStore()
    find_references(free, [clock], store=store)
    steps = {key.batch_size: curve.steps[-1] for key, curve in store.items() if curve.reached}
    assert min(steps.values()) < 40 < steps[8]

    limited = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT, max_steps=40)
    found = find_references(limited, [clock])[clock.name]

    assert (found.cost, found.batch_size) == (expected.cost, expected.batch_size)
    assert found.cost_of(8) == expected.cost_of(8) < 4 * expected.cost


def test_where_a_run_is_cut_off_there_is_a_validation_anyway(cheap_task: Task) -> None:
    # Validations come after 66, 67, 69 ... steps: a run of 68 must not be looked at there.
    setting = FixedSetting(cheap_task, "cheap", 0, Coupling.SQRT, max_steps=68)

    assert FixedCurves(setting, CurveStore(), 0.3, None).longest == 69
