from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.search.advice import Advice, Expected, advise, advise_size, quality_weight
from rlbatch.agents.search.goal import parse_goal
from rlbatch.agents.search.probe import Probe, ProbePoint, probe
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Array

SIZES = [2**k for k in range(13)]


def seen(scale: float, growth: float = 0.0, points: int = 20) -> Probe:
    """Return a probe that measured a noise scale exactly, growing with a power of the samples."""
    made = [
        ProbePoint(32 * k, 1.0, scale * (k / points) ** growth, 4.0, 1.0)
        for k in range(1, points + 1)
    ]
    return Probe(32, tuple(made), 4 * points, 0.0, arrived=False)


def cost(knee: float) -> Callable[[Array], Array]:
    def seconds(sizes: Array) -> Array:
        return knee + sizes

    return seconds


def given(scale: float, knee: float, default: int = 32, growth: float = 0.0) -> Advice:
    return advise_size(default, SIZES, cost(knee), seen(scale, growth))


@pytest.mark.parametrize("scale", [16.0, 64.0, 256.0])
@pytest.mark.parametrize("knee", [16.0, 64.0, 1024.0])
def test_it_is_where_the_formula_is_least(scale: float, knee: float) -> None:
    advice = given(scale, knee, default=1)

    # (1 + phi / B) (knee + B) is least at B = sqrt(phi knee).
    assert abs(math.log2(advice.batch_size / math.sqrt(scale * knee))) <= 0.5
    assert advice.noise_scale.value == pytest.approx(scale)


def test_near_the_best_it_is_left_as_it_is() -> None:
    advice = given(64.0, 64.0, default=64)

    assert advice.leave
    assert advice.batch_size == advice.default == 64
    assert advice.gain.value == 0.0


def test_costs_are_relative_and_the_gain_follows_from_them() -> None:
    advice = given(256.0, 1024.0, default=32)
    costs = dict(zip(advice.sizes, advice.costs, strict=True))

    assert costs[32] == 1.0
    assert advice.gain.value == pytest.approx(1.0 - costs[advice.batch_size], abs=0.05)
    assert advice.gain.low <= advice.gain.value <= advice.gain.high
    assert advice.largest_useful >= advice.batch_size
    least = min(costs.values())
    assert costs[advice.largest_useful] <= 1.1 * least
    assert costs[2 * advice.largest_useful] > 1.1 * least


def test_a_ramp_gains_where_the_noise_grows() -> None:
    still, growing = given(64.0, 256.0), given(64.0, 256.0, growth=1.0)

    assert still.ramp_gain.value == pytest.approx(0.0, abs=1e-9)
    assert growing.ramp_gain.value > 0.01


def test_a_gradient_lost_in_its_noise_asks_for_the_largest_size() -> None:
    points = tuple(ProbePoint(32 * k, -1.0, 50.0, 4.0, 1.0) for k in range(1, 20))
    advice = advise_size(
        32,
        SIZES,
        cost(1024.0),
        Probe(32, points, 80, 0.0, arrived=False),
    )

    assert advice.batch_size == SIZES[-1]


def test_a_probe_without_a_measurement_is_refused() -> None:
    points = (ProbePoint(1, math.nan, math.nan, 1.0, 1.0),)

    with pytest.raises(ConfigurationError, match="noise"):
        advise_size(
            32,
            SIZES,
            cost(1.0),
            Probe(1, points, 1, 0.0, arrived=False),
        )


def test_the_efficiency_moves_the_advice_from_the_smallest_to_the_largest() -> None:
    advised = []
    for efficiency in (0.0, 0.1, 0.2, 0.3, 0.6, 1.0):
        weight = quality_weight(parse_goal("epochs=3", efficiency))
        advice = advise_size(1024, SIZES, cost(512.0), seen(64.0), weight)
        advised.append(advice.batch_size)

    assert advised == sorted(advised)
    assert advised[0] == 1
    assert advised[-1] >= 1024
    assert quality_weight(parse_goal("target")) == 1.0


@pytest.mark.slow
def test_the_probe_measures_what_all_gradients_say() -> None:
    """At the start, against tr(Sigma) / |G|^2 of every sample's own gradient, by autograd."""
    import torch

    task = resolve_task("digits-mlp-sgd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.model()
    gradients = []
    for index in range(400):
        model.zero_grad()
        batch = tuple(column[None] for column in task.train_set[index])
        task.loss(model, batch).backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts).double().numpy())
    every = np.stack(gradients)
    trace = float(every.var(axis=0, ddof=1).sum())
    signal = float((every.mean(axis=0) ** 2).sum()) - trace / len(every)

    scales = []
    for seed in range(40):
        first = probe(task, seed=seed, steps=4).points
        scales.append(
            [
                sum(p.noise_trace for p in first if math.isfinite(p.noise_trace)),
                sum(p.grad_sqr for p in first if math.isfinite(p.grad_sqr)),
            ]
        )
    measured_trace, measured_signal = np.sum(scales, axis=0)

    assert measured_trace / measured_signal == pytest.approx(trace / signal, rel=0.35)


def test_a_task_and_a_clock(cheap: str) -> None:
    task = resolve_task(cheap)
    measured = probe(task, steps=30)

    advice = advise(task, measured, resolve_clock("cpu"))

    assert advice.default == 8
    assert {1, 2, 4, 8, 16, 32} == set(advice.sizes)
    assert measured.steps <= 30
    with pytest.raises(ConfigurationError, match="profile"):
        advise(task, measured, resolve_clock("wall"))


def test_a_share_that_rounds_to_nothing_has_no_sign() -> None:
    assert str(Expected(0.424, -0.004, 0.0)) == "42% [0%, 0%]"
    assert str(Expected(-0.006, -0.1, 1.0)) == "-1% [-10%, 100%]"
