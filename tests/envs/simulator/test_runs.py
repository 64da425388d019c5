"""Simulated runs: vectorisation, signals of the right size, and every switch of the
distribution."""

from dataclasses import fields, replace

import numpy as np
import pytest

from rlbatch.envs.clock import MEASURED_SHARE
from rlbatch.envs.simulator.descent import velocity
from rlbatch.envs.simulator.distribution import Distribution
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.envs.simulator.tasks import SimulatedTasks, draw_tasks
from rlbatch.signals.cadence import NOISE_RATE, is_measured
from rlbatch.signals.record import COST_CURVE_SIZES

PLAIN = Distribution(
    probability_adam=0.0,
    probability_momentum=0.0,
    couplings=(1.0, 0.0, 0.0, 0.0),
    sharpening=(1.0, 1.0),
    interpolation=(0.0, 0.0),
    irreducible=(0.0, 0.0),
    gap=(0.0, 0.0),
    probability_schedule=0.0,
    slow_start=(1.0, 1.0),
    stability=(0.05, 0.3),
)


def tasks(count: int, distribution: Distribution = PLAIN, seed: int = 0) -> SimulatedTasks:
    return draw_tasks(count, np.random.default_rng(seed), distribution)


def runs(drawn: SimulatedTasks, *, exact: bool = True, seed: int = 1) -> QuadraticRuns:
    return QuadraticRuns(drawn, np.random.default_rng(seed), exact=exact)


def test_runs_side_by_side_equal_runs_alone() -> None:
    drawn = tasks(5, Distribution())
    together = runs(drawn)
    alone = [runs(drawn.take(np.array([i]))) for i in range(5)]
    for _ in range(4):
        outcome = together.advance(drawn.start_batch_size)
        singles = [run.advance(run.tasks.start_batch_size) for run in alone]
        for i, single in enumerate(singles):
            assert outcome.validation_after[i] == pytest.approx(
                single.validation_after[0], rel=1e-9
            )
            assert outcome.cost[i] == pytest.approx(single.cost[0])


def test_a_chunk_equals_its_steps_one_by_one_under_constant_noise() -> None:
    calm = PLAIN.replace(
        log2_noise_scale=(0.0, 4.0)
    )  # no chunk blows up, which is judged at its end only
    drawn = replace(tasks(20, calm), chunk_minimum=np.full(20, 32.0), chunk_growth=np.zeros(20))
    single = replace(drawn, chunk_minimum=np.ones(20))
    whole, stepwise = runs(drawn), runs(single)
    while whole.steps[0] < 40:  # in chunks of 1, 1, 2, 3, 4, 6, 9 and 14
        whole.advance(drawn.base_batch_size)
    for _ in range(40):
        stepwise.advance(drawn.base_batch_size)
    np.testing.assert_allclose(whole.loss, stepwise.loss, rtol=1e-8)


def test_the_noise_estimates_are_unbiased_and_their_standard_errors_honest() -> None:
    one = tasks(1)
    many = SimulatedTasks(
        **{f.name: np.repeat(getattr(one, f.name), 4000, axis=0) for f in fields(one)}
    )
    crowd = runs(many, exact=False)
    for _ in range(2):  # the third chunk is the first that is measured
        crowd.advance(many.base_batch_size)
    squared, trace = crowd.gradient_norm(1.0)[0], crowd.noise_trace(1.0)[0]
    signals = crowd.advance(many.base_batch_size).signals
    estimates, errors = np.asarray(signals.grad_sqr), np.asarray(signals.grad_sqr_se)
    assert np.mean(estimates) == pytest.approx(squared, abs=4 * np.std(estimates) / np.sqrt(4000))
    assert np.mean(signals.noise_trace) == pytest.approx(trace, rel=0.05)
    assert np.std(estimates) == pytest.approx(np.median(errors), rel=0.1)


@pytest.mark.parametrize(
    ("size", "slope", "step"),
    [
        (64.0, 0.0, 1.0),  # launch-bound: a step costs one
        (64.0, 1.0, 64.0),  # compute-bound: one for each sample
        (1.0, 0.0, 0.0),  # a single sample shows no noise
    ],
)
def test_measured_steps_are_charged_what_that_costs(size: float, slope: float, step: float) -> None:
    curve = slope * np.log2(COST_CURVE_SIZES)
    drawn = replace(tasks(1), step_cost_curve=curve[None])
    charged = runs(drawn, exact=False)
    free = QuadraticRuns(drawn, np.random.default_rng(1), noise_rate=0.0)
    while charged.steps[0] < 40:
        for run in (charged, free):
            run.advance(np.array([size]))
    steps = int(charged.steps[0])
    measured = sum(is_measured(step, NOISE_RATE) for step in range(steps))
    assert measured >= 2
    np.testing.assert_allclose(free.cost, steps * size**slope)
    np.testing.assert_allclose(charged.cost, free.cost + 0.8 * MEASURED_SHARE * step * measured)


def test_noise_falls_with_the_batch_size_and_with_interpolation() -> None:
    drawn = replace(tasks(50), chunk_minimum=np.full(50, 4000.0))
    small, large = runs(drawn), runs(drawn)
    after_small = small.advance(np.full(50, 4.0)).validation_after
    after_large = large.advance(np.full(50, 1024.0)).validation_after
    assert (after_large <= after_small * (1 + 1e-9)).all()
    assert (after_large < after_small * 0.9).any()
    interpolating = replace(drawn, interpolation=np.ones(50))
    vanishing = runs(interpolating)
    for _ in range(3):
        vanishing.advance(np.full(50, 64.0))
        small.advance(np.full(50, 64.0))
    assert vanishing.loss.sum() < small.loss.sum()


def test_a_step_size_beyond_what_the_curvature_bears_is_rolled_back_and_paid() -> None:
    drawn = replace(tasks(10), step_size=np.full(10, 8.0), catapult=np.full(10, 2.0))
    wild = runs(drawn, exact=False)
    before = wild.loss.copy()
    outcome = wild.advance(drawn.base_batch_size)
    assert outcome.rolled_back.all()
    np.testing.assert_array_equal(wild.loss, before)
    assert (outcome.cost > 0).all()
    assert np.asarray(outcome.signals.rolled_back).all()
    unguarded = runs(drawn)
    assert not unguarded.advance(drawn.base_batch_size).rolled_back.any()
    assert unguarded.diverged.all()


def test_a_fresh_network_comes_to_life_along_a_sigmoid() -> None:
    count, steps = 6, 300
    quiet = PLAIN.replace(log2_noise_scale=(-60.0, -60.0), slow_start=(0.01, 0.05))
    drawn = replace(tasks(count, quiet), chunk_minimum=np.ones(count), chunk_growth=np.zeros(count))
    run = runs(drawn)
    loss, level = drawn.initial_loss.copy(), []
    for _ in range(steps):
        run.advance(drawn.base_batch_size)
        learned = np.minimum((1.0 - loss.sum(axis=1)) / drawn.slow_until, 1.0)
        lively = drawn.slow_start + (1.0 - drawn.slow_start) * learned
        loss = loss * (1.0 - (run.step_size * lively)[:, None] * drawn.curvature) ** 2
        level.append(np.log(loss.sum(axis=1)))
        np.testing.assert_allclose(run.loss, loss, rtol=1e-6, atol=1e-12)
    rate = -np.diff(level, axis=0)
    assert (rate.max(axis=0) > 1.5 * rate[0]).all()
    assert (rate[-1] < rate.max(axis=0)).all()


def test_velocity_gathers_in_the_first_steps_of_heavy_ball_only() -> None:
    drawn = replace(
        tasks(3), momentum=np.array([0.9, 0.9, 0.0]), adaptive=np.array([0.0, 1.0, 0.0])
    )
    run = runs(drawn)
    run.steps[:] = 3
    gathered = float(np.mean([1.0 - 0.9**step for step in range(4, 11)]))
    np.testing.assert_allclose(velocity(run, np.full(3, 7.0)), [gathered, 1.0, 1.0])


def test_runs_vary_around_their_mean_the_less_the_more_directions_they_have() -> None:
    one = replace(tasks(1), chunk_minimum=np.full(1, 200.0))

    def spread(directions: float) -> tuple[float, float]:
        many = one.take(np.zeros(2000, dtype=np.int64))
        crowd = runs(replace(many, directions=np.full(2000, directions)), exact=False)
        losses = crowd.advance(np.full(2000, 4.0)).validation_after
        return float(np.mean(losses)), float(np.std(losses))

    mean = float(runs(one).advance(np.full(1, 4.0)).validation_after[0])
    few, many = spread(2.0), spread(64.0)
    for found, deviation in (few, many):
        assert found == pytest.approx(mean, abs=4 * deviation / np.sqrt(2000))
    assert few[1] == pytest.approx(many[1] * np.sqrt(32), rel=0.15)


def test_the_schedule_ends_near_zero_whatever_the_batch_size() -> None:
    drawn = replace(tasks(4), schedule=np.ones(4))
    run = runs(drawn)
    run.samples[:] = drawn.base_batch_size * drawn.horizon
    np.testing.assert_allclose(run.schedule_factor(), 0.02, atol=1e-9)


def test_a_plan_is_told_as_often_as_asked_and_changes_nothing_else() -> None:
    asked = PLAIN.replace(
        probability_schedule=0.5, probability_known_plan=0.9, probability_idle_plan=0.2
    )
    drawn = tasks(4000, asked)
    told = np.isfinite(runs(drawn).context().planned_samples)
    scheduled = drawn.schedule > 0
    assert told[scheduled].mean() == pytest.approx(0.9, abs=0.03)
    assert told[~scheduled].mean() == pytest.approx(0.2, abs=0.03)
    planned = np.asarray(runs(drawn).context().planned_samples)[told]
    np.testing.assert_array_equal(planned, (drawn.base_batch_size * drawn.horizon)[told])
    silent = tasks(4000, asked.replace(probability_known_plan=0.0, probability_idle_plan=0.0))
    for field in fields(SimulatedTasks):
        if field.name != "plan_known":
            one, other = getattr(drawn, field.name), getattr(silent, field.name)
            np.testing.assert_array_equal(one, other)


def test_a_distribution_with_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stability must be \(low, high\)"):
        Distribution(stability=(1.0, 0.1))
    with pytest.raises(ValueError, match="probability_adam must be within"):
        Distribution(probability_adam=1.5)
