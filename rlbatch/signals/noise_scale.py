"""Gradient noise from the norms of parts' gradients and of their mean. Pure functions.

The parts are micro-batches, or single samples where their norms are known.

A batch of B samples is computed in k micro-batches. The expected squared norm of a mean gradient
over n samples is |G|^2 + tr(Sigma) / n, with G the true gradient and Sigma the covariance of one
sample's gradient, so two values of n determine both unknowns (McCandlish et al. 2018, "An Empirical
Model of Large-Batch Training", appendix A.1). Numerator and denominator stay apart: their ratio,
the noise scale, has no mean, and |G|^2 is often negative when B is far below it. Nothing is clamped
here, since a clamped value is biased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Array

MIN_EMPIRICAL = 3
"""Measurements from which on the standard error is the observed one."""

EFFECTIVE_DIMENSION = 10.0
"""tr(Sigma)^2 / tr(Sigma^2) assumed where the standard error comes from the formula.

Gradient noise of real networks lies in few directions, far fewer than there are parameters. A small
number gives a wide error: the safe side for two measurements.
"""


def estimate(
    small_sqr: ArrayLike, big_sqr: ArrayLike, micro_batch_size: ArrayLike, batch_size: ArrayLike
) -> tuple[Array, Array]:
    """Return unbiased estimates of |G|^2 and of tr(Sigma).

    Args:
        small_sqr: Mean over the micro-batches of the squared norm of each one's own mean gradient.
            For micro-batches of unequal size each is weighted by its share b_i / B: its
            expectation is then |G|^2 + tr(Sigma) k / B, that of equal ones of B / k samples.
        big_sqr: Squared norm of the mean gradient of the whole batch.
        micro_batch_size: Samples of a micro-batch; for unequal ones `batch_size / k`.
        batch_size: Samples of the whole batch.

    Returns:
        Two arrays of the broadcast shape of the arguments; NaN where the batch is not larger than a
        micro-batch.
    """
    small, big, b, n = (
        np.asarray(value, dtype=np.float64)
        for value in (small_sqr, big_sqr, micro_batch_size, batch_size)
    )
    divisible = n > b
    gap = np.where(divisible, n - b, np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return (n * big - b * small) / gap, (small - big) * (b * n) / gap


def estimator_variance(
    grad_sqr: float,
    noise_trace: float,
    batch_size: float,
    micro_batches: float,
    *,
    noise_trace_of_square: float | None = None,
    gradient_noise: float | None = None,
) -> tuple[float, float]:
    """Return the variances of one measurement's |G|^2 and tr(Sigma), exact for Gaussian gradients.

    The estimate of |G|^2 is the mean of the products g_i . g_j over pairs of micro-batches (a
    U-statistic), hence Var = 4 G'Sigma G / B + 2 tr(Sigma^2) k / ((k - 1) B^2); that of tr(Sigma)
    is a sample variance with k - 1 degrees of freedom, hence 2 tr(Sigma^2) / (k - 1).

    Args:
        grad_sqr: |G|^2; a negative one counts as 0.
        noise_trace: tr(Sigma); a negative one counts as 0.
        batch_size: Samples B.
        micro_batches: Micro-batches k, at least 2.
        noise_trace_of_square: tr(Sigma^2); None assumes tr(Sigma)^2 / EFFECTIVE_DIMENSION.
        gradient_noise: G'Sigma G; None assumes |G|^2 tr(Sigma) / EFFECTIVE_DIMENSION.

    Raises:
        ConfigurationError: There are fewer than two micro-batches.
    """
    if micro_batches < 2:
        raise ConfigurationError(
            f"Gradient noise needs at least 2 micro-batches, got {micro_batches}. "
            "Split the batch in two."
        )
    trace, signal = max(noise_trace, 0.0), max(grad_sqr, 0.0)
    if noise_trace_of_square is None:
        noise_trace_of_square = trace**2 / EFFECTIVE_DIMENSION
    if gradient_noise is None:
        gradient_noise = signal * trace / EFFECTIVE_DIMENSION
    k = micro_batches
    pairs = 2.0 * noise_trace_of_square / (k - 1)
    return 4.0 * gradient_noise / batch_size + pairs * k / batch_size**2, pairs


def summarize(
    small_sqr: Sequence[float] | Array,
    big_sqr: Sequence[float] | Array,
    micro_batch_size: Sequence[float] | Array,
    batch_size: Sequence[float] | Array,
    trace_variance: Sequence[float] | Array | None = None,
) -> Array:
    """Return the mean estimates over measured steps, with standard errors.

    Steps with a value that is not finite, or whose batch was not divided, are left out. With three
    steps or more the error is the observed spread over the square root of their number; with fewer
    it follows from `estimator_variance`, and for tr(Sigma) from the spread over samples where that
    is larger.

    Args:
        small_sqr: As for `estimate`, one entry a measured step.
        big_sqr: Likewise.
        micro_batch_size: Likewise.
        batch_size: Likewise.
        trace_variance: What the spread over samples says of the variance of each tr(Sigma).

    Returns:
        |G|^2 (which may be negative) and its error, tr(Sigma) and its error, shape (2, 2); NaN
        where there is no step.
    """
    b, n = np.asarray(micro_batch_size, dtype=np.float64), np.asarray(batch_size, dtype=np.float64)
    grad_sqr, trace = estimate(small_sqr, big_sqr, b, n)
    good = np.isfinite(grad_sqr) & np.isfinite(trace)
    count = int(good.sum())
    if count == 0:
        return np.full((2, 2), math.nan)
    grad_mean, trace_mean = float(grad_sqr[good].mean()), float(trace[good].mean())
    if count >= MIN_EMPIRICAL:
        grad_se, trace_se = (
            float(values[good].std(ddof=1)) / math.sqrt(count) for values in (grad_sqr, trace)
        )
    else:
        variances = [
            estimator_variance(grad_mean, trace_mean, size, size / micro)
            for size, micro in zip(n[good], b[good], strict=True)
        ]
        observed = np.zeros(len(n)) if trace_variance is None else np.asarray(trace_variance)
        formula = np.array(variances)
        formula[:, 1] = np.maximum(formula[:, 1], observed[good])
        grad_se, trace_se = (math.sqrt(part) / count for part in formula.sum(axis=0))
    return np.array([[grad_mean, grad_se], [trace_mean, trace_se]])


def adascale_gain(
    grad_sqr: ArrayLike, noise_trace: ArrayLike, base_batch_size: ArrayLike, batch_size: ArrayLike
) -> Array:
    """Return by what a step at a batch size is worth more than one at the base size.

    gain = (tr(Sigma) / B0 + |G|^2) / (tr(Sigma) / B + |G|^2), between 1 and B / B0 (Johnson et al.
    2020, "AdaScale SGD", equation 4). Estimates that are negative count as 0, unknown ones give 1.

    Args:
        grad_sqr: |G|^2, averaged over steps.
        noise_trace: tr(Sigma), averaged likewise.
        base_batch_size: Samples B0 for which the learning rate was chosen.
        batch_size: Samples B.
    """
    signal, trace, base, size = (
        np.asarray(value, dtype=np.float64)
        for value in (grad_sqr, noise_trace, base_batch_size, batch_size)
    )
    signal, trace = np.maximum(signal, 0.0), np.maximum(trace, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = (trace / base + signal) / (trace / size + signal)
    return np.where(np.isfinite(gain), gain, 1.0)
