"""What a chunk's steps showed, and a step that is being watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlbatch.signals.metric import GradientMetric
from rlbatch.signals.noise_scale import summarize
from rlbatch.signals.record import Array

_NOTHING: Array = np.full((2, 2), np.nan)  # measured


@dataclass(frozen=True)
class ChunkMeasurement:
    """What a chunk's steps showed. NaN: not measured.

    Attributes:
        steps: Steps watched.
        train_loss: Mean of their losses, those that are not finite left out.
        train_loss_std: Standard deviation of these; 0 for a single one.
        grad_sqr: Mean estimate of |G|^2; may be negative.
        grad_sqr_se: Its standard error.
        noise_trace: Mean estimate of tr(Sigma), the covariance of one sample's gradient.
        noise_trace_se: Its standard error.
        gradient_cosine: Mean cosine between the two half-batch gradients: of those that there were,
            and else the expected one.
        nonfinite_losses: Steps whose loss was not finite.
        nonfinite_steps: Steps whose loss, or measured gradient, was not finite.
        measurements: Steps that the gradient statistics come from.
    """

    steps: int
    train_loss: float
    train_loss_std: float
    grad_sqr: float
    grad_sqr_se: float
    noise_trace: float
    noise_trace_se: float
    gradient_cosine: float
    nonfinite_losses: int
    nonfinite_steps: int
    measurements: int = 0


def chunk_measurement(
    losses: Array,
    norms: Array,
    owners: Sequence[int],
    sizes: Sequence[tuple[float, float]],
    known: NDArray[np.bool_] | None = None,
    variances: Array | None = None,
) -> ChunkMeasurement:
    """Return what a chunk's steps showed, from what was left on the device.

    Args:
        losses: Of each step.
        norms: Small and big squared norm and the cosine of each measured step, one after the other.
        owners: Which step each of these is of.
        sizes: Samples of a micro-batch and of the batch, of each measured step.
        known: Whether each loss is what it was when it was computed; None: all are.
        variances: What the spread over samples says of the variance of each one's tr(Sigma);
            negative where nothing could be measured. None: all by the formula.
    """
    kept, bad = _finite(losses, known)
    nonfinite_losses = len(bad)
    noise, cosine, measurements = _NOTHING, math.nan, 0
    if owners:
        rows = norms.reshape(-1, 3)
        variance = np.zeros(len(rows)) if variances is None else variances
        there, sound = ~(variance < 0.0), np.isfinite(rows).all(axis=1)
        bad |= {owner for owner, lost in zip(owners, there & ~sound, strict=True) if lost}
        good = there & np.array([owner not in bad for owner in owners], dtype=bool)
        small, big, cosines = rows[good].T
        micro, batch = np.reshape(np.array(sizes, dtype=np.float64), (-1, 2))[good].T
        noise, measurements = summarize(small, big, micro, batch, variance[good]), len(cosines)
        cosine = float(cosines.mean()) if measurements else math.nan
    (grad_sqr, grad_sqr_se), (noise_trace, noise_trace_se) = noise
    mean, spread = _mean_and_spread(kept)
    return ChunkMeasurement(
        steps=len(losses),
        train_loss=mean,
        train_loss_std=spread,
        grad_sqr=float(grad_sqr),
        grad_sqr_se=float(grad_sqr_se),
        noise_trace=float(noise_trace),
        noise_trace_se=float(noise_trace_se),
        gradient_cosine=cosine,
        nonfinite_losses=nonfinite_losses,
        nonfinite_steps=len(bad),
        measurements=measurements,
    )


def _finite(losses: Array, known: NDArray[np.bool_] | None) -> tuple[Array, set[int]]:
    """Return the known losses that are finite, and the steps of those that are not."""
    finite = np.isfinite(losses)
    if finite.all() and (known is None or known.all()):
        return losses, set()
    known = np.ones(len(losses), dtype=bool) if known is None else known
    return losses[finite & known], set(np.flatnonzero(~finite & known).tolist())


def _mean_and_spread(losses: Array) -> tuple[float, float]:
    """Return mean and standard deviation, NaN without a loss and 0 with a single one.

    A deviation whose square is no number of double precision, from 1e154 on, is infinite.
    """
    count = len(losses)
    if not count:
        return math.nan, 0.0
    if count == 1:
        return float(losses[0]), 0.0
    # In a few microseconds; `mean` and `std` take three times as long for the same numbers.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduce(losses) / count
        rest = losses - mean
        spread = np.sqrt(np.add.reduce(rest * rest) / (count - 1))
    return float(mean), float(spread)


@dataclass
class Window:
    """One optimizer step under way, and what its measured micro-batches left on the device."""

    shares: Sequence[float]
    metric: GradientMetric | None
    half: int  # micro-batches of the first half
    done: int = 0
    loss: Tensor | None = None
    previous: list[Tensor] | None = None
    first_half: list[Tensor] | None = None
    half_sqr: Tensor | None = None
    small_sqr: Tensor | None = None
