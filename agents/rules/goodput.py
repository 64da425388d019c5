"""Goodput: throughput times statistical efficiency (Pollux)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.observation import step_cost_at
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Array, Signals

_CANDIDATES = 50


@dataclass(frozen=True)
class Goodput:
    """Takes the batch size with the most statistical progress per cost.

    With the noise scale phi = tr(Sigma) / |G|^2, the base batch size B0 and the cost c(B) of one
    step (Qiao et al. 2021, "Pollux", section 3; AdaptDL's `goodput.py`):

        efficiency(B) = (phi + B0) / (phi + B),   goodput(B) = B / c(B) * efficiency(B)

    The argmax is taken over 50 sizes spaced evenly in log B between the run's limits, and is
    adopted only when it is `hysteresis` better than the present size. As in AdaptDL |G|^2 and
    tr(Sigma) are averaged separately and a negative |G|^2 counts as 0 (which makes every size
    equally efficient).

    Per step in the source, per chunk here: AdaptDL forgets by 0.999 ** (B / B0) a step, so a chunk
    of n steps forgets by 0.999 ** (n B / B0). The cost is `Signals.step_cost_curve`, in the
    objective's unit, in place of AdaptDL's fitted throughput.

    Attributes:
        decay: Weight of the past, per step at the base batch size.
        hysteresis: Relative gain that a change must promise.
        below_base: Whether sizes below the base batch size are candidates; AdaptDL has none.
    """

    decay: float = 0.999
    hysteresis: float = 0.05
    below_base: bool = True

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 <= self.decay < 1, "Goodput.decay must be in [0, 1)", self.decay)
        gain = self.hysteresis
        tools.check(gain >= 0, "Goodput.hysteresis must not be negative", gain)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the averages (tr(Sigma), |G|^2) of nothing."""
        return tools.mean_start(shape), tools.mean_start(shape)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the best size; "stay" before the first noise measurement."""
        trace, grad_sqr = state
        scale = np.asarray(signals.batch_size) / signals.context.base_batch_size
        decay = self.decay ** (scale * signals.steps)
        trace = tools.mean_add(trace, signals.noise_trace, decay)
        grad_sqr = tools.mean_add(grad_sqr, signals.grad_sqr, decay)
        inverse_phi = np.maximum(tools.mean_value(grad_sqr), 0.0) / np.maximum(
            tools.mean_value(trace), 1e-30
        )
        sizes = self._candidates(signals)
        score = _log2_goodput(sizes, inverse_phi[..., None], signals.step_cost_curve[..., None, :])
        here = _log2_goodput(
            np.asarray(signals.batch_size, dtype=np.float64), inverse_phi, signals.step_cost_curve
        )
        best = np.argmax(score, axis=-1)[..., None]
        gain = np.take_along_axis(score, best, axis=-1)[..., 0] - here
        size = np.take_along_axis(sizes, best, axis=-1)[..., 0]
        change = np.where(
            gain > np.log2(1.0 + self.hysteresis), tools.change_to(size, signals.batch_size), 0.0
        )
        why = "noise scale {:.4g}"
        if np.all(np.isfinite(gain)):
            why += ", best size {:.0f} promises x{:.3g}"
        made = tools.decision(change, "goodput", why, 1.0 / inverse_phi, size, 2.0**gain)
        return made, (trace, grad_sqr)

    def _candidates(self, signals: Signals) -> Array:
        """Return the batch sizes to choose from, shape (..., 50)."""
        high = np.log2(signals.context.max_batch_size)
        low = np.log2(signals.context.min_batch_size)
        if not self.below_base:
            low = np.minimum(np.log2(signals.context.base_batch_size), high)
        steps = np.linspace(0.0, 1.0, _CANDIDATES)
        low, high = np.asarray(low)[..., None], np.asarray(high)[..., None]
        return np.round(2.0 ** (low + (high - low) * steps))


def _log2_goodput(sizes: Array, inverse_phi: Array, curve: Array) -> Array:
    """Return log2 of the goodput up to a constant, as 1 / efficiency ~ 1 + B / phi."""
    log2_sizes = np.log2(sizes)
    return log2_sizes - step_cost_at(curve, log2_sizes) - np.log2(1.0 + sizes * inverse_phi)
