"""Live runs against loops written by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from rlbatch.control.guard import GuardConfig
from rlbatch.envs.backend import TorchBackend
from rlbatch.envs.clock import MEASURED_SHARE
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights, DeviceProfile, step_cost
from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import TensorTable, collate_table, regression_loss
from rlbatch.envs.validator import Validator
from rlbatch.errors import ConfigurationError
from rlbatch.observation import encode, initial_state
from rlbatch.signals.record import COST_CURVE_SIZES, Coupling, Signals
from tests.helpers import perceptron as network

PROFILE = DeviceProfile("test", launch_seconds=1e-3, sample_seconds=1e-5, update_seconds=1e-4)


def table(rows: int, seed: int) -> TensorTable:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    noise = torch.randn(rows, generator=generator)
    return TensorTable(x, x.sum(1).sin() + 0.1 * noise)


def make_task(**changes: Any) -> Task:
    task = Task(
        name="test",
        model=partial(network, dropout=0.0),
        train_set=table(100, 0),
        val_set=table(40, 1),
        loss=regression_loss,
        optimizer=partial(AdamW, lr=3e-3),
        batch_size=16,
        target=0.05,
        collate=collate_table,
    )
    return dataclasses.replace(task, **changes)


def make_run(task: Task | None = None, **changes: Any) -> LiveRun:
    options: dict[str, Any] = {
        "seed": 3,
        "coupling": Coupling.NONE,
        "profile": PROFILE,
        "objective": Objective(budget=1e9),
        "cadence": Cadence(first=4),  # chunks of four steps from the beginning
    }
    return LiveRun(make_task() if task is None else task, **{**options, **changes})


def weights(run: LiveRun) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model_of(run).parameters()])


def model_of(run: LiveRun) -> nn.Module:
    assert isinstance(run.backend, TorchBackend)
    return run.backend.model


def same(left: Signals, right: Signals) -> bool:
    fields = [f.name for f in dataclasses.fields(Signals) if f.name != "context"]
    return all(
        np.array_equal(getattr(left, name), getattr(right, name), equal_nan=True) for name in fields
    )


def by_hand(task: Task, batch_size: int, steps: int, rate: float) -> Tensor:
    """The plain loop: seeded weights, permutations from one generator, last batch kept."""
    torch.manual_seed(3)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = rate
    scheduler = None if task.scheduler is None else task.scheduler(optimizer, 100)
    generator = torch.Generator().manual_seed(3)
    columns = task.train_set.columns  # pyright: ignore[reportAttributeAccessIssue]
    done = seen = scheduled = 0
    while done < steps:
        for chosen in torch.randperm(100, generator=generator).split(batch_size):
            optimizer.zero_grad()
            task.loss(model, tuple(column[chosen] for column in columns)).backward()
            optimizer.step()
            seen += len(chosen)
            while scheduler is not None and scheduled < seen // task.batch_size:
                scheduler.step()
                scheduled += 1
            done += 1
            if done == steps:
                break
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize(
    "optimizer", [partial(AdamW, lr=3e-3), partial(SGD, lr=3e-3, momentum=0.9)]
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_constant_batch_size_is_the_plain_loop_bit_for_bit(
    optimizer: Any, scheduled: bool
) -> None:
    schedule = (CosineAnnealingLR) if scheduled else None
    task = make_task(optimizer=optimizer, scheduler=schedule, model=partial(network, dropout=0.3))
    run = make_run(task, noise_rate=0.0, planned_steps=100)
    while run.steps < 30:
        run.advance(16)
    expected = by_hand(task, 16, run.steps, 3e-3)
    assert torch.equal(weights(run), expected)


def test_the_plan_is_in_the_signals_unless_it_is_kept_secret() -> None:
    def told(**changes: Any) -> float:
        return float(make_run(**changes).advance(16).context.planned_samples)

    assert told(planned_steps=100) == 100 * make_task().batch_size
    assert math.isnan(told(planned_steps=100, plan_known=False))
    assert math.isnan(told())


@pytest.mark.parametrize(("coupling", "rate"), [("sqrt", 6e-3), ("linear", 12e-3), ("none", 3e-3)])
def test_the_coupled_rate_is_that_of_the_plain_loop(coupling: str, rate: float) -> None:
    run = make_run(
        coupling=Coupling(coupling), noise_rate=0.0, learning_rate_scale=1.0, guard=False
    )
    signals = [run.advance(64) for _ in range(3)][-1]
    assert torch.equal(weights(run), by_hand(make_task(), 64, run.steps, rate))
    assert signals.learning_rate_factor == pytest.approx(rate / 3e-3)
    assert signals.schedule_factor == 1.0
    assert run.context.learning_rate == 3e-3


def test_equal_seeds_are_bit_equal_and_leave_the_global_generator_alone() -> None:
    task = make_task(model=partial(network, dropout=0.5))
    state = torch.get_rng_state()
    first, second = make_run(task, noise_rate=math.inf), make_run(task, noise_rate=math.inf)
    assert torch.equal(torch.get_rng_state(), state)
    for size in (16, 32, 7, 1, 64, 64):
        left = first.advance(size)
        torch.manual_seed(size)
        torch.rand(5)  # somebody else's random numbers
        assert same(left, second.advance(size))
    assert torch.equal(weights(first), weights(second))
    other = make_run(task, seed=4)
    assert not torch.equal(weights(make_run(task)), weights(other))


class _Recorder(TensorTable):
    def __init__(self, source: TensorTable) -> None:
        super().__init__(*source.columns)
        self.seen: list[int] = []

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        self.seen += indices
        return super().__getitems__(indices)


def test_all_batch_sizes_see_the_same_samples_in_the_same_order() -> None:
    orders: list[list[int]] = []
    for schedule in ([16] * 8, [1, 3, 50, 100, 2, 30, 9, 9]):
        data = _Recorder(table(100, 0))
        run = make_run(make_task(train_set=data))
        for size in schedule:
            run.advance(size)
        orders.append(data.seen)
    shortest = min(map(len, orders))
    assert shortest > 300
    assert orders[0][:shortest] == orders[1][:shortest]
    assert sorted(orders[0][:100]) == sorted(orders[0][100:200]) == list(range(100))
    assert orders[0][:100] != orders[0][100:200]


def test_the_cost_is_the_profiles_and_measuring_is_charged() -> None:
    run = make_run(noise_rate=0.0, max_batch_size=50)
    run.advance(50)
    run.advance(20)
    expected = 4 * float(PROFILE.step_seconds(50)) + 4 * float(PROFILE.step_seconds(20))
    assert run.cost == pytest.approx(expected)
    measuring = make_run(max_batch_size=50, noise_rate=math.inf)
    measuring.advance(50)
    plain = float(PROFILE.step_seconds(50))
    # Adam has no second moment at the first two steps: they are not measured. An update is 1e-4.
    assert measuring.cost == pytest.approx(4 * plain + 2 * MEASURED_SHARE * (plain - 1e-4))


def test_the_profiles_curve_is_exact() -> None:
    weights = CostWeights(seconds=0.5, samples=0.3, joules=0.2)
    run = make_run(objective=Objective(budget=1e9, weights=weights), noise_rate=0.0)
    signals = run.advance(16)
    assert signals.step_cost_known == 1.0
    np.testing.assert_allclose(
        2**signals.step_cost_curve, step_cost(PROFILE, weights, COST_CURVE_SIZES, 16)
    )
    assert signals.chunk_cost == pytest.approx(4 * float(step_cost(PROFILE, weights, 16, 16)))


def test_the_wall_clock_counts_training_and_learns_the_curve() -> None:
    run = make_run(profile=None)
    first = run.advance(16)
    assert first.step_cost_known == 0.0
    assert first.chunk_cost > 0
    last = run.advance(64)
    assert last.step_cost_known == 1.0
    assert np.isfinite(last.step_cost_curve).all()
    assert last.total_cost == pytest.approx(first.chunk_cost + last.chunk_cost)


def test_samples_as_cost_need_no_profile() -> None:
    objective = Objective(budget=1e9, weights=CostWeights(seconds=0.0, samples=1.0))
    run = make_run(profile=None, objective=objective)
    signals = run.advance(16)
    assert run.cost == run.samples_seen == 64
    np.testing.assert_array_equal(2**signals.step_cost_curve, COST_CURVE_SIZES)
    with pytest.raises(ConfigurationError, match="Name a profile"):
        make_run(profile=None, objective=Objective(budget=1.0, weights=CostWeights(0.0, 0.5, 0.5)))


def test_the_run_stops_inside_a_chunk_at_the_target() -> None:
    cadence = Cadence(first=50, minimum=50, maximum=50, validation_growth=0.0)
    run = make_run(objective=Objective(target_loss=0.3), cadence=cadence)
    signals = run.advance(16)
    while not run.finished:
        signals = run.advance(16)
    assert run.reached
    assert run.steps % 50 != 0
    assert signals.steps == run.steps % 50
    losses = [row.loss for row in run.validations]
    assert losses[-1] <= 0.3 < min(losses[:-1])
    assert signals.val_loss == losses[-1] == Validator(run.task).loss(model_of(run))
    with pytest.raises(ConfigurationError, match="finished"):
        run.advance(16)


def test_the_run_stops_when_the_budget_is_spent_and_knows_its_last_loss() -> None:
    objective = Objective(budget=200.0, weights=CostWeights(seconds=0.0, samples=1.0))
    run = make_run(
        objective=objective, cadence=Cadence(first=50, minimum=50, validation_growth=5.0)
    )
    run.advance(30)
    assert run.exhausted
    assert not run.reached
    assert run.samples_seen == 200  # 30 + 30 + 30 + 10, twice
    assert run.val_loss == Validator(run.task).loss(model_of(run))


def test_max_steps_end_the_run() -> None:
    run = make_run(max_steps=6)
    run.advance(16)
    assert run.advance(16).steps == 2
    assert run.exhausted


def test_signals_can_be_encoded() -> None:
    run, state = make_run(noise_rate=math.inf), initial_state()
    for size in (16, 16, 32):
        signals = run.advance(size)
        observation, state = encode(signals, state)
        assert np.isfinite(observation).all()
    assert signals.noise_trace > 0
    assert signals.grad_sqr_se > 0
    assert math.isfinite(float(signals.predicted_decrease))


def test_noise_is_measured_only_where_it_can_be() -> None:
    run = make_run(noise_rate=1.0)  # measures the steps that begin after 3, 8, 15, 24 ... others
    known = [math.isfinite(float(run.advance(16).noise_trace)) for _ in range(8)]
    assert [4 * chunk for chunk, there in enumerate(known) if there] == [0, 8, 12, 24]
    assert run.steps == 32
    for unmeasurable in (make_run(noise_rate=math.inf), make_run(noise_rate=0.0)):
        size = 16 if unmeasurable._measuring_rate == 0.0 else 1
        assert all(math.isnan(float(unmeasurable.advance(size).noise_trace)) for _ in range(5))
    adascale = make_run(noise_rate=0.0, coupling=Coupling.ADASCALE)
    for _ in range(2):
        adascale.advance(16)
    signals = adascale.advance(64)
    assert math.isfinite(float(signals.noise_trace))
    assert 1.0 < float(signals.learning_rate_factor) <= 4.0


def exploding(model: nn.Module, batch: Any, bad: Iterator[float]) -> Tensor:
    factor = next(bad) if model.training else 1.0
    return regression_loss(model, batch) * factor


@pytest.mark.parametrize("spike", [1e3, math.nan, math.inf])
def test_a_damaged_chunk_is_rolled_back_exactly(spike: float) -> None:
    factors = iter([1.0] * 8 + [spike] * 4 + [1.0] * 100)
    run = make_run(make_task(loss=partial(exploding, bad=factors)), noise_rate=0.0)
    run.advance(16)
    run.advance(16)
    kept = weights(run)
    moments = [dict(state) for state in run.optimizer.state.values()]
    moments = [{key: value.clone() for key, value in state.items()} for state in moments]
    cost = run.cost
    signals = run.advance(32)
    assert signals.rolled_back == 1.0
    assert signals.batch_size == 32
    assert run.batch_size == 16
    assert torch.equal(weights(run), kept)
    for state, saved in zip(run.optimizer.state.values(), moments, strict=True):
        assert set(state) == set(saved)
        assert all(torch.equal(state[key], saved[key]) for key in saved)
    assert run.cost > cost
    assert not run.finished
    assert run.advance(16).rolled_back == 0.0


def test_a_first_chunk_that_is_not_finite_leaves_no_optimizer_state() -> None:
    factors = iter([math.nan] * 4 + [1.0] * 100)
    run = make_run(make_task(loss=partial(exploding, bad=factors)), noise_rate=0.0)
    start = weights(run)
    assert run.advance(16).rolled_back == 1.0
    assert torch.equal(weights(run), start)
    assert not run.optimizer.state
    assert run.advance(32).rolled_back == 0.0
    assert torch.isfinite(weights(run)).all()


def test_damage_that_returns_releases_the_run() -> None:
    factors = iter([1.0] * 4 + [math.nan] * 1000)
    run = make_run(make_task(loss=partial(exploding, bad=factors)), noise_rate=0.0)
    for size in (16, 16, 16):
        assert not run.released
        run.advance(size)
    assert run.released
    assert torch.isfinite(weights(run)).all()
    run.advance(32)  # the losses are no numbers, and nobody undoes it
    assert run.diverged
    assert run.finished
    assert not run.reached
    changing = make_run(
        make_task(loss=partial(exploding, bad=iter([math.nan] * 1000))),
        guard=GuardConfig(max_consecutive=3),
    )
    for size in (16, 32, 64):
        assert not changing.released
        changing.advance(size)
    assert changing.released


def test_a_released_run_goes_on_at_the_tasks_size_as_if_nothing_had_been() -> None:
    bad = 2 * 4  # steps: two chunks, rolled back, at an unchanged size
    factors = iter([1.0] * 4 + [math.nan] * bad + [1.0] * 1000)
    cadence = Cadence(minimum=4, growth=0.0, first=4)
    run = make_run(
        make_task(loss=partial(exploding, bad=factors)),
        noise_rate=0.0,
        cadence=cadence,
        coupling=Coupling.LINEAR,
        start_batch_size=32,
    )
    for _ in range(3):
        run.advance(32)
    assert run.released
    kept, seen = weights(run), run.samples_seen
    signals = run.advance(64)
    base = run.task.batch_size
    assert signals.batch_size == run.batch_size == base != 32
    assert run.samples_seen == seen + 4 * base
    assert signals.learning_rate_factor == 1.0
    assert not torch.equal(weights(run), kept)
    assert not run.finished


def test_without_a_guard_a_loss_that_is_not_finite_ends_the_run() -> None:
    factors = iter([1.0] * 4 + [math.nan] * 1000)
    run = make_run(make_task(loss=partial(exploding, bad=factors)), noise_rate=0.0, guard=False)
    run.advance(16)
    assert run.advance(16).rolled_back == 0.0
    assert run.diverged


def test_bounds_and_missing_lengths_are_refused() -> None:
    run = make_run(min_batch_size=4, max_batch_size=64)
    for size in (3, 65):
        with pytest.raises(ConfigurationError, match="from 4 to 64"):
            run.advance(size)
    with pytest.raises(ConfigurationError, match="Move the bounds"):
        make_run(start_batch_size=128)
    with pytest.raises(ConfigurationError, match="planned_steps"):
        make_run(make_task(scheduler=CosineAnnealingLR))


def test_a_fixed_curve_is_the_same_run() -> None:
    curve = fixed_run_curve(
        make_task(), 16, seed=3, coupling=Coupling.SQRT, target_loss=0.3, max_steps=500
    )
    run = make_run(objective=Objective(target_loss=0.3), noise_rate=0.0)
    while not run.finished:
        run.advance(16)
    assert curve.reached
    assert list(curve.steps) == [row.steps for row in run.validations]
    assert list(curve.samples) == [row.samples for row in run.validations]
    assert list(curve.val_loss) == [row.loss for row in run.validations]
    longer = fixed_run_curve(make_task(), 16, seed=3, coupling=Coupling.SQRT, max_steps=900)
    shared = len(curve.steps)
    np.testing.assert_array_equal(longer.val_loss[:shared], curve.val_loss)
    assert longer.steps[-1] == 900
    limited = fixed_run_curve(make_task(), 16, seed=3, coupling=Coupling.NONE, max_samples=160)
    assert limited.samples[-1] >= 160 > limited.samples[-2]
    with pytest.raises(ConfigurationError):
        fixed_run_curve(make_task(), 16, seed=3, coupling=Coupling.NONE)


def test_adascales_factor_follows_the_smoothed_gradient_statistics() -> None:
    run = make_run(
        make_task(optimizer=partial(SGD, lr=1e-3)), coupling=Coupling.ADASCALE, noise_rate=math.inf
    )
    first, second = run.advance(16), run.advance(32)
    grad_sqr = 0.7 * float(first.grad_sqr) + float(second.grad_sqr)
    trace = 0.7 * float(first.noise_trace) + float(second.noise_trace)
    third = run.advance(64)
    gain = (trace / 16 + grad_sqr) / (trace / 64 + grad_sqr)
    assert first.learning_rate_factor == 1.0
    assert third.learning_rate_factor == pytest.approx(gain)
    assert 1.0 < gain < 4.0
