"""What a chunk's steps showed, and a step that is being watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rlbatch.signals.metric import GradientMetric
from rlbatch.signals.noise_scale import NoiseStatistics


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
