"""Batch size from the gradient noise scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class NoiseScale:
    """Grows the batch size to the noise scale over theta squared, and never shrinks it.

    After each measurement (arXiv 2602.03001, algorithm 1), with N and M the running means of
    tr(Sigma) and |G|^2:

        B <- max(ceil(N / (theta^2 M)), B)

    The paper couples the learning rate by the square root; here that is the run's LR coupling.
    A running mean of |G|^2 that is not positive says nothing about the size: the rule stays.

    In the source a measurement is taken every 100 steps; here one a chunk, so `decay` is per chunk.
    The source waits for the first 15 % of a run of known length. The length is unknown here, so the
    rule waits for `warmup_chunks` decisions.

    Attributes:
        theta: Noise-to-signal ratio that is tolerated; the paper's value for language models.
        decay: Weight of the past in both running means, per chunk.
        warmup_chunks: Decisions to stay at first.
        follow: Also shrink when the noise scale falls (not in the paper).
    """

    theta: float = 0.6
    decay: float = 0.9
    warmup_chunks: int = 5
    follow: bool = False

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 < self.theta < np.inf, "NoiseScale.theta must be above 0", self.theta)
        tools.check(0 <= self.decay < 1, "NoiseScale.decay must be in [0, 1)", self.decay)
        wait = self.warmup_chunks
        tools.check(wait >= 0, "NoiseScale.warmup_chunks must not be negative", wait)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the averages (tr(Sigma), |G|^2) of nothing, and no decisions so far."""
        return tools.mean_start(shape), tools.mean_start(shape), np.zeros(shape, dtype=np.int64)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the size that the noise scale asks for."""
        trace, grad_sqr, chunks = state
        trace = tools.mean_add(trace, signals.noise_trace, self.decay)
        grad_sqr = tools.mean_add(grad_sqr, signals.grad_sqr, self.decay)
        noise_scale = tools.mean_value(trace) / tools.mean_value(grad_sqr)
        wanted = np.maximum(np.ceil(noise_scale / self.theta**2), 1.0)
        if not self.follow:
            wanted = np.maximum(wanted, signals.batch_size)
        known = (tools.mean_value(grad_sqr) > 0) & (tools.mean_value(trace) > 0)
        active = known & (np.asarray(chunks) >= self.warmup_chunks)
        change = np.where(active, tools.change_to(wanted, signals.batch_size), 0.0)
        made = tools.decision(change, "noise-scale", "noise scale {:.4g}", noise_scale)
        return made, (trace, grad_sqr, np.asarray(chunks) + 1)
