"""AdaDamp and its two cheaper relatives: damp the gradient noise as the loss falls.

Sievert and Shah 2021, "Improving the convergence of SGD through adaptive batch sizes", and the
package adadamp, whose constants these are. B0 is the batch size of the first chunk. The package
holds a size for 20 updates (`dwell`); here it is held for a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Array, Signals


@dataclass(frozen=True)
class AdaDamp:
    """Batch size inversely proportional to the loss.

    With F the training loss, x0 the start of the run and F* the lowest possible loss:

        B <- ceil(B0 * (F(x0) - F*) / (F(x) - F*))

    The source evaluates F on the whole training set; here it is the chunk's mean training loss,
    which costs nothing.

    Attributes:
        lowest_loss: F*.
    """

    lowest_loss: float = 0.0

    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (B0, F(x0)), not known yet."""
        return np.full(shape, np.nan), np.full(shape, np.nan)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the damped size; "stay" where the loss is unknown or below F*."""
        start, first_excess = state
        start = _once(start, signals.batch_size)
        excess = np.asarray(signals.train_loss, dtype=np.float64) - self.lowest_loss
        excess = np.where(np.isfinite(excess) & (excess > 0), excess, np.nan)
        first_excess = _once(first_excess, excess)
        ratio = first_excess / excess
        change = tools.change_to(np.ceil(start * ratio), signals.batch_size)
        made = tools.decision(change, "adadamp", "loss fell {:.3g} times", ratio)
        return made, (start, first_excess)


@dataclass(frozen=True)
class PadaDamp:
    """Batch size that grows linearly with the optimizer steps k: B <- ceil(B0 + rate k).

    Attributes:
        rate: Samples to add per optimizer step.
    """

    rate: float = 1e-3

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        tools.check(0 <= self.rate < np.inf, "PadaDamp.rate must not be negative", self.rate)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (B0), not known yet."""
        return (np.full(shape, np.nan),)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the scheduled size."""
        (start,) = state
        start = _once(start, signals.batch_size)
        wanted = np.ceil(start + self.rate * np.asarray(signals.total_steps))
        return tools.decision(tools.change_to(wanted, signals.batch_size), "padadamp"), (start,)


@dataclass(frozen=True)
class RadaDamp:
    """Batch size from running means of the loss and of the batch gradient's squared norm.

    With both relative to their means over the first `wait` steps:

        B <- max(B0, ceil(B0 / (0.5 * (loss / loss0 + norm2 / norm2_0))))

    It stays at B0 for `wait` steps. The source forgets by `rho` every 20 steps, so a chunk of n
    steps forgets by rho ** (n / 20); it takes the least value of these 20 steps, here it is the
    chunk's mean, as single steps are not recorded.

    Attributes:
        rho: Weight of the past in both running means, per 20 steps.
        wait: Optimizer steps before the first change.
    """

    rho: float = 0.2
    wait: int = 100

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 <= self.rho < 1, "RadaDamp.rho must be in [0, 1)", self.rho)
        tools.check(self.wait >= 0, "RadaDamp.wait must not be negative", self.wait)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return B0 (not known yet), then (early mean, running mean) of the loss and of norm2."""
        pair = (tools.mean_start(shape), tools.mean_start(shape))
        return np.full(shape, np.nan), pair, pair

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the damped size; "stay" where a mean is unknown."""
        start, loss, norm2 = state
        start = _once(start, signals.batch_size)
        loss = self._follow(loss, signals.train_loss, signals)
        norm2 = self._follow(norm2, tools.batch_gradient_sqr(signals), signals)
        level = 0.5 * (_relative(loss) + _relative(norm2))
        wanted = np.where(level > 0, np.maximum(start, np.ceil(start / level)), np.nan)
        waiting = np.asarray(signals.total_steps) < self.wait
        change = tools.change_to(np.where(waiting, start, wanted), signals.batch_size)
        made = tools.decision(change, "radadamp", "loss and gradient at {:.3g} of the start", level)
        return made, (start, loss, norm2)

    def _follow(self, means: Any, value: Any, signals: Signals) -> Any:
        early, running = means
        steps = np.asarray(signals.steps, dtype=np.float64)
        began = np.asarray(signals.total_steps) - steps
        # A plain mean over the early steps: each value weighs as many steps as it stands for.
        total, weight = early
        counts = np.isfinite(value) & ((began < self.wait) | (np.asarray(weight) == 0))
        early = (
            total + np.where(counts, steps * np.where(counts, value, 0.0), 0.0),
            weight + np.where(counts, steps, 0.0),
        )
        return early, tools.mean_add(running, value, self.rho ** (steps / 20.0))


def _relative(means: Any) -> Array:
    early, running = means
    return tools.mean_value(running) / tools.mean_value(early)


def _once(known: Any, value: Any) -> Array:
    """Return what is known, or the value where nothing is known yet."""
    return np.where(np.isnan(known), value, known)
