"""What a chunk's steps showed, and a step that is being watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlbatch.signals.metric import GradientMetric
from rlbatch.signals.noise_scale import NoiseStatistics, measured_noise
from rlbatch.signals.record import Array


@dataclass(frozen=True)
class ChunkMeasurement:
    """What a chunk's steps showed. NaN: not measured.

    Attributes:
        steps: Steps watched.
        train_loss: Mean of their losses, those that are not finite left out.
        train_loss_std: Standard deviation of these; 0 for a single one.
        noise: The gradient statistics.
        gradient_cosine: Mean cosine between the two half-batch gradients: of those that there were,
            and else the expected one.
        nonfinite_losses: Steps whose loss was not finite.
        nonfinite_steps: Steps whose loss, or measured gradient, was not finite.
    """

    steps: int
    train_loss: float
    train_loss_std: float
    noise: NoiseStatistics
    gradient_cosine: float
    nonfinite_losses: int
    nonfinite_steps: int


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
        variances: As in `measured_noise`, of each measured step; None: all by the formula.
    """
    finite = np.isfinite(losses)
    kept = losses
    bad = set[int]()
    if not (finite.all() and (known is None or known.all())):
        known = np.ones(len(losses), dtype=bool) if known is None else known
        kept = losses[finite & known]
        bad = set(np.flatnonzero(~finite & known).tolist())
    nonfinite_losses = len(bad)
    noise, cosine = NoiseStatistics(), math.nan
    if owners:
        noise, cosine = measured_noise(norms.reshape(-1, 3), owners, sizes, bad, variances)
    mean, spread = _mean_and_spread(kept)
    return ChunkMeasurement(
        steps=len(losses),
        train_loss=mean,
        train_loss_std=spread,
        noise=noise,
        gradient_cosine=cosine,
        nonfinite_losses=nonfinite_losses,
        nonfinite_steps=len(bad),
    )


def _mean_and_spread(losses: Array) -> tuple[float, float]:
    """Return mean and standard deviation, NaN without a loss and 0 with a single one."""
    count = len(losses)
    if not count:
        return math.nan, 0.0
    # In a few microseconds; `mean` and `std` take three times as long for the same numbers.
    mean = np.add.reduce(losses) / count
    if count == 1:
        return float(mean), 0.0
    rest = losses - mean
    return float(mean), float(np.sqrt(np.add.reduce(rest * rest) / (count - 1)))


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
