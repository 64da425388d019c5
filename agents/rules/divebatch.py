"""DiveBatch: batch size from the diversity of an epoch's gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class DiveBatch:
    """Sets the batch size after each epoch to delta n times the gradient diversity.

    Chen et al. 2025, "DiveBatch: accelerating model training through gradient-diversity aware batch
    size adaptation" (arXiv 2509.16173): with the gradients g_i of the n samples of an epoch

        B <- min(Bmax, delta n D),   D = sum |g_i|^2 / |sum g_i|^2

    The source sums the samples' gradients one by one. Here both sums follow from the estimates of
    the epoch's chunks, averaged over its samples: sum |g_i|^2 = n (|G|^2 + tr(Sigma)) and
    |sum g_i|^2 = n^2 |G|^2 + n tr(Sigma), so that n D runs from 1 (all alike) to n (all noise). For
    adaptive optimizers they are in the preconditioned metric. Bmax is the run's own limit. The
    source scales the rate with the batch: the run's LR coupling `linear`.

    Attributes:
        delta: Share of the diversity's bound to take; the source tunes it for each task.
    """

    delta: float = 0.1

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 < self.delta < np.inf, "DiveBatch.delta must be above 0", self.delta)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (epochs done, sums over the epoch of tr(Sigma), of |G|^2 and of the weights)."""
        zeros = np.zeros(shape)
        return zeros, zeros, zeros, zeros

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change after the epoch's last chunk, "stay" within an epoch."""
        epochs, trace, grad_sqr, weight = (np.asarray(part, dtype=np.float64) for part in state)
        n = np.asarray(signals.context.dataset_size, dtype=np.float64)
        measured = np.isfinite(signals.noise_trace) & np.isfinite(signals.grad_sqr)
        samples = np.where(measured, np.asarray(signals.steps) * signals.batch_size, 0.0)
        trace = trace + samples * np.where(measured, signals.noise_trace, 0.0)
        grad_sqr = grad_sqr + samples * np.where(measured, signals.grad_sqr, 0.0)
        weight = weight + samples
        done = np.floor(np.asarray(signals.total_samples) / n)
        ends = done > epochs
        positive = np.maximum(grad_sqr, 0.0)  # the estimate of |G|^2 may be negative
        diversity = (positive + trace) / (positive + trace / n)
        known = ends & (weight > 0) & (trace >= 0) & np.isfinite(diversity)
        wanted = np.maximum(np.round(self.delta * diversity), 1.0)
        change = np.where(known, tools.change_to(wanted, signals.batch_size), 0.0)
        made = tools.decision(change, "divebatch", "n x diversity {:.4g}", diversity)
        kept = [np.where(ends, 0.0, part) for part in (trace, grad_sqr, weight)]
        return made, (np.maximum(done, epochs), *kept)
