"""Seesaw up to the gradient noise scale, the user's own decay from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.agents.rules.seesaw import growth_of_cuts
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class SeesawNoise:
    """Grows the batch size as Seesaw does, but not beyond the measured noise scale.

        B <- max(B0, min(B0 / s, theta phi)),   phi = tr(Sigma) / |G|^2

    with s as in `rlbatch.agents.rules.seesaw.Seesaw`. Beyond the critical batch size a larger one
    no longer makes up for a cut of the rate (the source's own figures show the loss rise there);
    once the size stops, the schedule's cuts act on the rate again. The combination is rlbatch's;
    the noise scale is McCandlish et al. 2018, "An empirical model of large-batch training". A noise
    scale that falls again shrinks nothing, and before the first measurement the size stays.

    Attributes:
        cut: Factor of one cut of Seesaw.
        theta: Multiple of the noise scale at which to stop.
        decay: Weight of the past in the running means of tr(Sigma) and |G|^2, per chunk.
    """

    cut: float = 1.1
    theta: float = 1.0
    decay: float = 0.9

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(1 < self.cut < np.inf, "SeesawNoise.cut must be above 1", self.cut)
        tools.check(0 < self.theta < np.inf, "SeesawNoise.theta must be above 0", self.theta)
        tools.check(0 <= self.decay < 1, "SeesawNoise.decay must be in [0, 1)", self.decay)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the peak of the schedule so far, and the means of tr(Sigma) and |G|^2."""
        return np.zeros(shape), tools.mean_start(shape), tools.mean_start(shape)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to Seesaw's size or to the noise scale, whichever is smaller."""
        peak, trace, grad_sqr = state
        growth, peak = growth_of_cuts(signals, peak, self.cut)
        trace = tools.mean_add(trace, signals.noise_trace, self.decay)
        grad_sqr = tools.mean_add(grad_sqr, signals.grad_sqr, self.decay)
        base = np.asarray(signals.context.base_batch_size, dtype=np.float64)
        seesaw = base * growth
        noise_scale = tools.mean_value(trace) / np.maximum(tools.mean_value(grad_sqr), 0.0)
        limit = np.where(np.isnan(noise_scale), base, self.theta * noise_scale)
        # What was taken before is kept, up to what Seesaw alone would have.
        limit = np.maximum(np.maximum(limit, base), np.asarray(signals.batch_size))
        change = tools.change_to(np.minimum(seesaw, limit), signals.batch_size)
        why = "the schedule has cut the rate by {:.3g}, noise scale {:.4g}"
        made = tools.decision(change, "seesaw-noise", why, growth, noise_scale)
        return made, (peak, trace, grad_sqr)
