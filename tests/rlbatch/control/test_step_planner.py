"""The plan of a Keras run's batches, without Keras: any reader, any sizes, any place to resume."""

from __future__ import annotations

import io
import random
from collections import deque
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.control.config import ControllerConfig
from rlbatch.control.few_sizes import PowersOfTwo, Rounded
from rlbatch.control.step_planner import StepPlanner
from rlbatch.data.order import ShuffledSampler
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy
from rlbatch.testing.generators import simple_signals

BASE = 8


def make_planner(size: int, lag: int, seed: int = 3) -> StepPlanner:
    return StepPlanner(ShuffledSampler(size, seed), size, BASE, lag)


def run(
    planner: StepPlanner, epochs: int, reads_ahead: int, seed: int, stop_after: int | None = None
) -> list[tuple[int, int, list[int]]]:
    """Train: (step, size in the plan, samples) of each, sizes asked for at random by step."""
    steps: list[tuple[int, int, list[int]]] = []
    for _ in range(epochs):
        planner.open_epoch()
        reader = planner.iterate()
        buffer: deque[list[int]] = deque()
        while True:
            while len(buffer) <= reads_ahead:
                issued = next(reader, None)
                if issued is None:
                    break
                buffer.append(issued.indices)
            if not buffer:
                break
            indices = buffer.popleft()
            plan = planner.arrive(len(indices))
            steps.append((plan.step, plan.batch_size, indices))
            planner.end_step()
            planner.set_batch_size(random.Random(1000 * seed + plan.step).choice([1, 3, 8, 21, 64]))
            if stop_after is not None and len(steps) == stop_after:
                return steps
            if planner.is_complete(plan):
                break  # as fit does: the reader is not asked for what there is not
    return steps


@given(
    size=st.integers(1, 120),
    lag=st.integers(0, 4),
    ahead=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_each_epoch_has_each_sample_once_however_far_a_pipeline_reads_ahead(
    size: int, lag: int, ahead: int, seed: int
) -> None:
    steps = run(make_planner(size, lag), 3, ahead, seed)
    seen = [index for _, _, indices in steps for index in indices]
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert [number for number, _, _ in steps] == list(range(len(steps)))
    # A single sample that would be left at an epoch's end joins the step before it.
    assert all(len(indices) <= planned + 1 for _, planned, indices in steps)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_change_takes_effect_after_the_declared_lag_whatever_was_read(lag: int) -> None:
    """A pipeline that is slower than it may be makes no difference: runs repeat."""
    runs = [run(make_planner(90, lag), 3, ahead, seed=1) for ahead in range(lag + 1)]
    assert all(steps == runs[0] for steps in runs)
    asked = [BASE] + [random.Random(1000 + n).choice([1, 3, 8, 21, 64]) for n in range(300)]
    for number, planned, _ in runs[0]:
        assert planned == asked[max(0, number - lag)]


@given(
    stop=st.integers(1, 25), lag=st.integers(0, 3), ahead=st.integers(0, 3), seed=st.integers(0, 5)
)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    stop: int, lag: int, ahead: int, seed: int
) -> None:
    ahead = min(ahead, lag)
    whole = run(make_planner(70, lag), 4, ahead, seed)
    stop = min(stop, len(whole) - 1)
    planner = make_planner(70, lag)
    before = run(planner, 4, ahead, seed, stop_after=stop)
    file = io.BytesIO()
    torch.save(planner.state_dict(), file)
    file.seek(0)

    resumed = make_planner(70, lag)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    after = run(resumed, 4 - resumed.epoch, ahead, seed)

    assert before + after == whole


def test_a_step_that_was_not_made_comes_again() -> None:
    planner = make_planner(30, 0)
    planner.open_epoch()
    first = next(planner.iterate()).indices
    planner.arrive(len(first))  # and then the step fails: no done()

    resumed = make_planner(30, 0)
    resumed.load_state_dict(planner.state_dict())
    resumed.open_epoch()
    assert next(resumed.iterate()).indices == first


def test_what_keras_looks_at_before_it_trains_is_not_counted() -> None:
    planner = make_planner(30, 0)
    peek = next(planner.iterate())
    assert peek.is_peek
    assert len(peek.indices) == BASE
    assert next(len(indices) for _, _, indices in run(planner, 1, 0, seed=0)) == BASE
    assert planner.position == 30


def test_data_without_its_controller_is_refused_after_a_peek() -> None:
    with pytest.raises(DeliveryError, match="without it"):
        list(make_planner(30, 0).iterate())


def test_batches_that_were_not_planned_are_refused() -> None:
    planner = make_planner(30, 0)
    planner.open_epoch()
    with pytest.raises(DeliveryError, match="did not plan"):
        planner.arrive(8)
    next(planner.iterate())
    with pytest.raises(DeliveryError, match="planned with 8 samples, and 7 reached"):
        planner.arrive(7)


def test_other_data_than_in_the_resumed_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="30 samples in an epoch"):
        make_planner(31, 0).load_state_dict(make_planner(30, 0).state_dict())


@given(
    base=st.integers(1, 200),
    size=st.integers(1, 5000),
    seed=st.integers(0, 20),
)
def test_few_sizes_reach_a_function_that_is_compiled_for_each(
    base: int, size: int, seed: int
) -> None:
    """Whatever is decided: the allowed ones, the plain run's rest, and one rest more."""
    size = max(size, base)
    sizes = PowersOfTwo.between(max(1, base // 16), min(64 * base, size), base, size)
    planner = StepPlanner(range(size), size, base, 0)
    planner.sizes = sizes
    delivered: set[int] = set()
    choose = random.Random(seed)
    for _ in range(4):
        planner.open_epoch()
        count = 0
        for issued in planner.iterate():
            count += len(issued.indices)
            delivered.add(len(issued.indices))
            plan = planner.arrive(len(issued.indices))
            planner.set_batch_size(choose.choice(sizes.allowed))
            assert plan.batch_size == len(issued.indices) or count == size
        assert count == size
    assert base in sizes.allowed
    assert all(large == 2 * small for small, large in pairwise(sizes.allowed))
    assert len(delivered - set(sizes.allowed)) <= 2
    assert delivered - set(sizes.allowed) <= {size % base, size % sizes.allowed[0]}


def test_an_untouched_run_has_the_plain_runs_batches_where_sizes_are_few() -> None:
    planner = StepPlanner(range(1000), 1000, 64, 0)
    planner.sizes = PowersOfTwo.between(4, 512, 64, 1000)
    plans = few_sizes_of(planner)
    assert plans == [(64, 64)] * 15 + [(64, 40)]  # at the user's size, and with its rate

    # A size four times as large leaves 232: pieces of their own sizes, the last one too.
    planner.set_batch_size(256)
    assert few_sizes_of(planner) == [(256, 256)] * 3 + [(128, 128), (64, 64), (40, 40)]
    planner.set_batch_size(64)
    assert few_sizes_of(planner) == plans


def few_sizes_of(planner: StepPlanner) -> list[tuple[int, int]]:
    """Return the size in force and the samples of each step of an epoch."""
    planner.open_epoch()
    arrived = [planner.arrive(len(issued.indices)) for issued in planner.iterate()]
    return [(plan.batch_size, plan.step_samples) for plan in arrived]


def test_decisions_are_rounded_to_the_allowed_sizes() -> None:
    policy: Any = Rounded(ScriptedPolicy((0.6, -0.4, 9.0)), (16, 32, 64, 128))
    state = policy.initial_state()
    signals = simple_signals(batch_size=64.0)
    changes = []
    for _ in range(3):
        decision, state = policy.decide(np.zeros(1), signals, state)
        changes.append(float(decision.log2_change))
    assert changes == [1.0, 0.0, 1.0]
    assert policy.action_grid is None


def test_limits_are_allowed_sizes() -> None:
    sizes = PowersOfTwo.between(3, 700, 48, 900)
    assert sizes.allowed == (3, 6, 12, 24, 48, 96, 192, 384)
    limited = sizes.limited(ControllerConfig(max_log2_change=2.5))
    assert (limited.limits.min_batch_size, limited.limits.max_batch_size) == (3, 384)
    assert limited.max_log2_change == 2.0
    with pytest.raises(ConfigurationError, match="jit_compile=False"):
        sizes.limited(ControllerConfig(max_log2_change=0.5))


def test_a_change_leaves_no_single_sample_at_an_epochs_end() -> None:
    """136 samples at 34 make four steps; at 45 a single one would be left."""
    planner = StepPlanner(range(136), 136, 34)
    sizes: list[int] = []
    for _ in range(2):
        planner.open_epoch()
        for issued in planner.iterate():
            sizes.append(len(issued.indices))
            plan = planner.arrive(len(issued.indices))
            planner.end_step()
            planner.set_batch_size(45)
            if planner.is_complete(plan):
                break
    assert sizes[-3:] == [45, 45, 46]
