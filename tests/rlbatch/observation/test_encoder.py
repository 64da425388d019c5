"""The encoder: bounded for anything, free of units, equal for one run and for many."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbatch import observation
from rlbatch.observation import (
    OBSERVATION_NAMES,
    OBSERVATION_SIZE,
    encode,
    initial_state,
    step_cost_at,
)
from rlbatch.signals.record import COST_CURVE_SIZES, RunContext, Signals
from rlbatch.testing import random_signals

LEVELS = np.log2(1e-3 * (1.0 + COST_CURVE_SIZES / 64.0))


def signals(**changes: Any) -> Signals:
    context = RunContext(
        base_batch_size=64.0,
        min_batch_size=1.0,
        max_batch_size=4096.0,
        dataset_size=10_000.0,
        learning_rate=0.1,
        momentum=0.9,
        adaptive=0.0,
        coupling_exponent=0.5,
        adascale=0.0,
        target_loss=0.2,
        budget=np.nan,
        weight_seconds=1.0,
        weight_samples=0.0,
        weight_joules=0.0,
    )
    plain = Signals(
        context=context,
        batch_size=64.0,
        steps=10.0,
        total_steps=10.0,
        total_samples=640.0,
        chunk_cost=1.0,
        total_cost=1.0,
        train_loss=1.0,
        train_loss_std=0.1,
        val_loss=1.1,
        grad_sqr=2.0,
        grad_sqr_se=0.1,
        noise_trace=512.0,
        noise_trace_se=10.0,
        gradient_cosine=0.1,
        predicted_decrease=0.3,
        learning_rate_factor=1.0,
        schedule_factor=1.0,
        step_cost_curve=LEVELS,
        step_cost_known=1.0,
        nonfinite_steps=0.0,
        rolled_back=0.0,
    )
    return replace(plain, **changes)


def feature(vector: np.ndarray, name: str) -> float:
    return float(vector[..., OBSERVATION_NAMES.index(name)])


def test_of_a_plan_the_samples_are_spent_and_of_a_budget_the_cost() -> None:
    def spent(**changes: Any) -> tuple[float, float]:
        plain = signals()
        context = replace(plain.context, target_loss=np.nan, **changes)
        seen, _ = encode(replace(plain, context=context), initial_state())
        return feature(seen, "budget_run"), feature(seen, "spent")

    assert spent() == (1.0, 0.0)
    assert spent(planned_samples=2560.0) == (1.0, 0.25)
    assert spent(budget=8.0) == (1.0, 0.125)
    assert spent(budget=8.0, planned_samples=2560.0) == (1.0, 0.125)


def test_a_plan_is_told_beside_a_target_as_what_is_done_and_what_steps_are_left() -> None:
    def plan(planned: float) -> list[float]:
        plain = signals(total_samples=640.0, total_steps=10.0, batch_size=64.0)
        context = replace(plain.context, planned_samples=planned, target_loss=0.5)
        seen, _ = encode(replace(plain, context=context), initial_state())
        assert feature(seen, "spent") == 0.0
        return [feature(seen, name) for name in ("plan_known", "plan_done", "plan_left")]

    assert plan(np.nan) == [0.0, 0.0, 0.0]
    # 40 steps of 64 are left after 10: 2^2 as many.
    assert plan(640.0 + 40 * 64) == pytest.approx([1.0, 0.2, 2 / 8])
    assert plan(640.0) == [1.0, 1.0, -1.0]
    assert plan(320.0) == [1.0, 1.0, -1.0]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_observation_is_finite_and_within_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = initial_state((7,))
    for _ in range(3):
        vector, state = encode(random_signals((7,), rng), state)
        assert vector.shape == (7, OBSERVATION_SIZE)
        assert vector.dtype == np.float32
        assert np.isfinite(vector).all()
        assert np.abs(vector).max() <= 1.0


def test_many_runs_at_once_equal_each_run_alone() -> None:
    rng = np.random.default_rng(3)
    rounds = [random_signals((5,), rng) for _ in range(4)]
    together = initial_state((5,))
    alone = [initial_state() for _ in range(5)]
    for chunk in rounds:
        vectors, together = encode(chunk, together)
        for i in range(5):
            vector, alone[i] = encode(_entry(chunk, i), alone[i])
            np.testing.assert_allclose(vector, vectors[i], atol=1e-6)


def _entry(chunk: Signals, i: int) -> Signals:
    def pick(value: Any) -> Any:
        return np.asarray(value)[i]

    context = RunContext(
        **{f.name: pick(getattr(chunk.context, f.name)) for f in fields(RunContext)}
    )
    return Signals(
        context=context,
        **{f.name: pick(getattr(chunk, f.name)) for f in fields(Signals) if f.name != "context"},
    )


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_units_of_loss_gradient_and_cost_do_not_matter(unit: float) -> None:
    one, other = initial_state(), initial_state()
    for loss, cost in ((1.0, 1.0), (0.7, 2.0), (0.6, 3.5)):
        plain = signals(train_loss=loss, val_loss=1.1 * loss, total_cost=cost, chunk_cost=cost / 2)
        scaled = replace(
            plain,
            context=replace(plain.context, target_loss=0.2 * unit),
            train_loss=loss * unit,
            train_loss_std=0.1 * unit,
            val_loss=1.1 * loss * unit,
            grad_sqr=2.0 * unit**2,
            grad_sqr_se=0.1 * unit**2,
            noise_trace=512.0 * unit**2,
            noise_trace_se=10.0 * unit**2,
            predicted_decrease=0.3 * unit,
            step_cost_curve=LEVELS + np.log2(unit),
            chunk_cost=cost / 2 * unit,
            total_cost=cost * unit,
        )
        a, one = encode(plain, one)
        b, other = encode(scaled, other)
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_efficiency_is_phi_over_phi_plus_batch_size() -> None:
    vector, _ = encode(signals(), initial_state())
    phi = 512.0 / 2.0
    assert feature(vector, "efficiency") == pytest.approx(2 * phi / (phi + 64.0) - 1, abs=1e-6)
    assert feature(vector, "noise_vs_size") == pytest.approx(np.log2(phi / 64.0) / 10, abs=1e-6)


def test_numerator_and_denominator_are_averaged_separately() -> None:
    state = initial_state()
    for squared in (3.0, -1.0, 2.0):
        vector, state = encode(signals(grad_sqr=squared, grad_sqr_se=0.01), state)
    weights = np.array([0.49, 0.7, 1.0])
    mean = (weights * [3.0, -1.0, 2.0]).sum() / weights.sum()
    assert feature(vector, "noise_vs_size") == pytest.approx(
        np.log2(512.0 / mean / 64.0) / 10, abs=1e-5
    )


def test_missing_measurements_are_masked() -> None:
    nothing = signals(
        grad_sqr=np.nan,
        grad_sqr_se=np.nan,
        noise_trace=np.nan,
        noise_trace_se=np.nan,
        gradient_cosine=np.nan,
        predicted_decrease=np.nan,
        val_loss=np.nan,
    )
    vector, _ = encode(nothing, initial_state())
    for name in (
        "efficiency",
        "noise_vs_size",
        "noise_known",
        "goodput_step",
        "val_known",
        "val_gap",
    ):
        assert feature(vector, name) == 0.0


def test_the_goodput_step_points_to_the_argmax_of_goodput() -> None:
    vector, _ = encode(signals(), initial_state())
    sizes = COST_CURVE_SIZES[COST_CURVE_SIZES <= 4096]
    goodput = sizes / (256.0 + sizes) / (1.0 + sizes / 64.0)
    best = sizes[np.argmax(goodput)]
    assert feature(vector, "goodput_step") == pytest.approx(np.log2(best / 64.0) / 6, abs=1e-6)


def test_step_cost_is_interpolated_in_log_log() -> None:
    assert step_cost_at(LEVELS, np.array(6.0)) == pytest.approx(LEVELS[6])
    assert step_cost_at(LEVELS, np.array(6.5)) == pytest.approx((LEVELS[6] + LEVELS[7]) / 2)
    assert step_cost_at(LEVELS, np.array(99.0)) == pytest.approx(LEVELS[-1])


def test_the_state_that_goes_in_is_left_alone() -> None:
    _, state = encode(signals(), initial_state())
    copies = [np.copy(value) for value in state]
    encode(signals(train_loss=0.5, batch_size=128.0), state)
    for value, copy in zip(state, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


def test_group_names_are_unique() -> None:
    assert len(set(OBSERVATION_NAMES)) == OBSERVATION_SIZE
    assert observation.SCHEMA_VERSION >= 1


def run_of(*chunks: dict[str, Any]) -> np.ndarray:
    """The observation after chunks of ten steps and cost 1 each."""
    state, vector = initial_state(), np.empty(0)
    for number, chunk in enumerate(chunks, start=1):
        counted = {"total_cost": float(number), "total_steps": 10.0 * number}
        vector, state = encode(signals(**{"val_loss": np.nan, **counted, **chunk}), state)
    return vector


def test_validations_are_compared_with_the_last_one_however_long_ago() -> None:
    vector = run_of({"val_loss": 2.0}, {}, {}, {"val_loss": 1.0}, {})
    assert feature(vector, "val_decrease") == 0.0  # nothing new in the last chunk
    assert feature(vector, "val_known") == 0.0
    rate = np.log(2.0) / np.log(4.0)
    assert feature(vector, "val_trend") == pytest.approx(np.tanh(rate), abs=1e-6)
    remaining = np.log2(np.log(1.0 / 0.2) / rate)
    assert feature(vector, "val_remaining") == pytest.approx(remaining / 8, abs=1e-6)
    risen = run_of({"val_loss": 2.0}, {"val_loss": 1.0}, {"val_loss": 1.5})
    assert feature(risen, "val_decrease") == pytest.approx(np.tanh(5 * np.log(1 / 1.5)), abs=1e-6)
    assert feature(risen, "val_rise") == pytest.approx(np.tanh(3 * np.log(1.5)), abs=1e-6)


def test_without_validations_their_features_are_masked() -> None:
    vector = run_of({}, {"train_loss": 0.9}, {"train_loss": 0.8})
    for name in observation.GROUPS["validation"]:
        assert feature(vector, name) == 0.0


def test_what_a_size_gave_is_remembered_when_it_is_left() -> None:
    falling = [{"train_loss": loss, "batch_size": 512.0} for loss in (1.0, 0.8, 0.65)]
    rising = [{"train_loss": loss, "batch_size": 2048.0} for loss in (0.7, 0.8)]
    vector = run_of(*falling, *rising)
    assert feature(vector, "rate_/4") > 0.2
    assert feature(vector, "rate_here") < -0.2
    assert min(feature(vector, name) for name in ("known_/4", "known_here")) > 0.5
    for name in ("rate_/2", "known_/2", "rate_x2", "known_x2"):
        assert feature(vector, name) == 0.0


def test_validations_tell_more_of_a_size_than_a_few_noisy_losses() -> None:
    noisy = {"train_loss_std": 2.0, "batch_size": 4.0}
    seen = [
        {"train_loss": 1.0, **noisy},
        {"train_loss": 1.4, **noisy},
        {"train_loss": 1.5, **noisy},
    ]
    unaware = run_of(*seen)
    aware = run_of(
        *({"val_loss": loss, **chunk} for loss, chunk in zip((1.0, 0.8, 0.7), seen, strict=True))
    )
    assert feature(unaware, "known_here") < 0.4
    assert feature(aware, "known_here") > 0.9
    assert feature(unaware, "rate_here") < 0.0 < feature(aware, "rate_here")


def test_a_roll_back_counts_against_its_size_and_not_for_the_next_one() -> None:
    vector = run_of(
        {"train_loss": 1.0, "batch_size": 512.0},
        {"train_loss": 8.0, "batch_size": 4096.0, "rolled_back": 1.0},
        {"train_loss": 1.0, "batch_size": 512.0},
    )
    assert feature(vector, "rate_x8") < -0.9
    assert feature(vector, "rate_here") == pytest.approx(0.0, abs=1e-6)
