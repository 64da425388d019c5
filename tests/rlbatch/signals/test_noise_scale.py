"""The estimator against synthetic Gaussian gradients with exactly known statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.signals import noise_scale

DIMENSION = 20
GRADIENT = np.linspace(-1.0, 1.0, DIMENSION) / 3
VARIANCES = np.geomspace(0.1, 10.0, DIMENSION)  # diagonal of Sigma
GRAD_SQR, NOISE_TRACE = float(GRADIENT @ GRADIENT), float(VARIANCES.sum())


def micro_gradients(sizes: list[int], trials: int, seed: int = 0) -> NDArray[np.float64]:
    """Mean gradients of micro-batches of these sizes, shape (trials, k, DIMENSION)."""
    noise = np.random.default_rng(seed).standard_normal((trials, len(sizes), DIMENSION))
    return GRADIENT + noise * np.sqrt(VARIANCES / np.asarray(sizes, dtype=float)[:, None])


def norms(gradients: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean squared norm of equal micro-batches, and the squared norm of their mean."""
    return np.square(gradients).sum(-1).mean(-1), np.square(gradients.mean(1)).sum(-1)


def standardized(values: NDArray[np.float64], truth: float) -> float:
    return float((values.mean() - truth) / (values.std() / math.sqrt(len(values))))


@pytest.mark.parametrize(("micro_batches", "micro_batch_size"), [(2, 32), (4, 16), (8, 8), (2, 1)])
def test_estimates_are_unbiased_however_the_batch_is_split(
    micro_batches: int, micro_batch_size: int
) -> None:
    small, big = norms(micro_gradients([micro_batch_size] * micro_batches, 40_000))
    grad_sqr, trace = noise_scale.estimate(
        small, big, micro_batch_size, micro_batches * micro_batch_size
    )
    assert abs(standardized(grad_sqr, GRAD_SQR)) < 4
    assert abs(standardized(trace, NOISE_TRACE)) < 4


def test_unequal_micro_batches_are_unbiased() -> None:
    sizes = [5, 16, 3]
    gradients = micro_gradients(sizes, 20_000)
    share = np.asarray(sizes) / sum(sizes)
    big = np.square((gradients * share[:, None]).sum(1)).sum(-1)
    small = np.square(gradients).sum(-1) @ share
    grad_sqr, trace = noise_scale.estimate(small, big, sum(sizes) / 3, sum(sizes))
    assert abs(standardized(grad_sqr, GRAD_SQR)) < 4
    assert abs(standardized(trace, NOISE_TRACE)) < 4


@pytest.mark.parametrize(("micro_batches", "micro_batch_size"), [(2, 32), (8, 8), (2, 2)])
def test_variance_formula_is_exact(micro_batches: int, micro_batch_size: int) -> None:
    batch_size = micro_batches * micro_batch_size
    small, big = norms(micro_gradients([micro_batch_size] * micro_batches, 60_000))
    estimates = noise_scale.estimate(small, big, micro_batch_size, batch_size)
    expected = noise_scale.estimator_variance(
        GRAD_SQR,
        NOISE_TRACE,
        batch_size,
        micro_batches,
        noise_trace_of_square=float(np.square(VARIANCES).sum()),
        gradient_noise=float(np.square(GRADIENT) @ VARIANCES),
    )
    for values, variance in zip(estimates, expected, strict=True):
        assert values.var() == pytest.approx(variance, rel=0.04)


def test_negative_estimates_are_kept() -> None:
    grad_sqr, _ = noise_scale.estimate([3.0], [1.0], [1.0], [2.0])
    assert grad_sqr[0] == -1.0
    assert noise_scale.summarize([3.0], [1.0], [1.0], [2.0])[0, 0] == -1.0


def test_empirical_error_covers_the_truth() -> None:
    small, big = norms(micro_gradients([8, 8], 2000 * 4, seed=1))
    covered = 0
    for s, b in zip(small.reshape(-1, 4), big.reshape(-1, 4), strict=True):
        (signal, error), _ = noise_scale.summarize(s, b, np.full(4, 8.0), np.full(4, 16.0))
        covered += abs(signal - GRAD_SQR) < 3.182 * error  # t, 3 df, 95 %
    assert 0.93 < covered / 2000 < 0.97


def test_few_measurements_fall_back_to_the_formula() -> None:
    one = noise_scale.summarize([3.0], [2.5], [8.0], [16.0])
    variance = noise_scale.estimator_variance(one[0, 0], one[1, 0], 16.0, 2.0)
    assert one[:, 1] == pytest.approx(np.sqrt(variance))
    two = noise_scale.summarize([3.0, 3.0], [2.5, 2.5], [8.0, 8.0], [16.0, 16.0])
    assert two[0, 1] == pytest.approx(one[0, 1] / math.sqrt(2))


def test_steps_that_are_not_finite_or_not_divided_are_skipped() -> None:
    clean = noise_scale.summarize([3.0, 4.0], [2.5, 2.0], [8.0, 8.0], [16.0, 16.0])
    dirty = noise_scale.summarize(
        [math.nan, 3.0, 1.0, 4.0, 2.0],
        [1.0, 2.5, math.inf, 2.0, 2.0],
        [8.0, 8.0, 8.0, 8.0, 16.0],
        [16.0, 16.0, 16.0, 16.0, 16.0],
    )
    np.testing.assert_array_equal(dirty, clean)
    assert np.isnan(noise_scale.summarize([], [], [], [])).all()
    assert np.isnan(noise_scale.summarize([math.nan], [1.0], [1.0], [2.0])).all()


def test_one_micro_batch_has_no_variance() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 micro-batches"):
        noise_scale.estimator_variance(1.0, 1.0, 8, 1)


def test_adascale_gain_lies_between_one_and_the_ratio() -> None:
    gain = noise_scale.adascale_gain
    assert gain(1.0, 1e9, 8, 64) == pytest.approx(8.0)  # all noise: linear scaling
    assert gain(1.0, 0.0, 8, 64) == 1.0  # no noise: a larger batch is worth nothing
    assert gain(1.0, 64.0, 8, 64) == pytest.approx((8 + 1) / (1 + 1))
    assert gain(1.0, 64.0, 8, 4) == pytest.approx((8 + 1) / (16 + 1))
    assert gain(-3.0, 5.0, 8, 16) == pytest.approx(2.0)
    assert gain(math.nan, 5.0, 8, 16) == gain(0.0, 0.0, 8, 16) == 1.0
