"""Seesaw: where the learning rate falls, let the batch size rise instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Array, Signals

_ROUNDING = 1e-9  # of a logarithm: a schedule that stands exactly at a cut has made it


@dataclass(frozen=True)
class Seesaw:
    """Grows the batch size as the user's schedule cuts the learning rate.

    Meterez et al. 2025, "Seesaw: accelerating training by balancing learning rate and batch size
    scheduling" (arXiv 2510.14717): where the schedule would cut the rate by a, Adam's rate is cut
    by sqrt(a) and the batch multiplied by a; SGD keeps its rate and multiplies the batch by a. With
    the schedule in force and the rate coupled on top of it, both are

        B <- B0 / s,   s = scheduled rate / peak of the scheduled rate so far

    the first with LR coupling `sqrt` (the applied rate is s / sqrt(s) = sqrt(s) of the peak), the
    second with `linear` (s / s = 1). With `none` the rate falls by all of a beside the larger
    batch, which is neither. B0 is the batch size that the rate was chosen for.

    During a warm-up the rate is its own peak so far, s is 1, and the size stays at B0. Only what
    falls after a peak counts. Cuts are made in factors of `cut`, as in the source's schedule; a
    schedule that ends at 0 asks for ever larger batches, up to the run's limit.

    Attributes:
        cut: Factor of one cut, above 1; the source's is 1.1. With 2 the size only doubles.
    """

    cut: float = 1.1

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        tools.check(1 < self.cut < np.inf, "Seesaw.cut must be above 1", self.cut)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (peak of the schedule's factor so far), nothing seen yet."""
        return (np.zeros(shape),)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the size that the schedule's place stands for."""
        growth, peak = growth_of_cuts(signals, state[0], self.cut)
        wanted = np.asarray(signals.context.base_batch_size) * growth
        change = tools.change_to(wanted, signals.batch_size)
        made = tools.decision(change, "seesaw", "the schedule has cut the rate by {:.3g}", growth)
        return made, (peak,)


def growth_of_cuts(signals: Signals, peak: Any, cut: float) -> tuple[Array, Array]:
    """Return 1 / s rounded down to whole cuts, within the run's largest size, and the new peak.

    Args:
        signals: Of the chunk.
        peak: Largest factor of the schedule seen before, 0 at first.
        cut: Factor of one cut.
    """
    factor = np.asarray(signals.schedule_factor, dtype=np.float64)
    known = np.isfinite(factor)
    peak = np.maximum(peak, np.where(known, factor, 0.0))
    most = np.asarray(signals.context.max_batch_size) / signals.context.base_batch_size
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(known & (peak > 0), np.clip(factor / peak, 0.0, 1.0), 1.0)
        cuts = np.floor(-np.log(share) / np.log(cut) + _ROUNDING)
        growth = np.minimum(cut ** np.minimum(cuts, 1e3), np.maximum(most, 1.0))
    return growth, peak
